#!/usr/bin/env python3
"""nexus_librarian beside zarr-python and TensorStore: samples in shuffled order, out of page cache.

    build/bench-venv/bin/python tests/bench/reader_bench.py [--rounds 5] [--mib 512] [--folder /dev/shm]

Prints CPU seconds of the whole process (its threads too) per GB of delivered rows; bars: at most 0.6
for ours, with every checksum verified (as the others do). Then what DataLoader delivers with 2 workers
(bar: 2 GB/s on two processors that do nothing else), and how long opening takes with 10,000 shards
(bar: 50 ms). The contenders take turns; medians of the rounds.
"""

import argparse
import pathlib
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "build/release/python"))

import numpy  # noqa: E402
import tensorstore  # noqa: E402
import torch  # noqa: E402
import zarr  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

import nexus_librarian  # noqa: E402

CAPTURE = "blocks.0.resid_post"
SHARDS = 10_000
LOADER_PASSES = 12


def cpu_seconds():
    own, children = (resource.getrusage(who) for who in
                     (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def measured(run):
    """(CPU seconds per GB, GB/s) of run(), which returns the bytes it delivered."""
    begin, cpu = time.perf_counter(), cpu_seconds()
    gigabytes = run() / 1e9
    return (cpu_seconds() - cpu) / gigabytes, gigabytes / (time.perf_counter() - begin)


def ours(path, framework):
    store = nexus_librarian.ActivationStore(path, framework=framework)
    captures = [CAPTURE]

    def read(samples):
        rows = [0]
        for sample in samples:
            rows[0] += store.sample(sample, captures)[CAPTURE].shape[0]
        return rows[0]

    return read


def by_rows(path, open_array, read_rows):
    """A reader that finds a sample's rows with the parts' offsets, as FORMAT.md section 4 says."""
    places = []
    for part in sorted(pathlib.Path(path).glob("part-*")):
        offsets = zarr.open_array(str(part / "tokens/offsets"), mode="r")[:]
        array = open_array(part / CAPTURE)
        places += [(array, int(begin), int(end)) for begin, end in zip(offsets, offsets[1:])]

    def read(samples):
        rows = 0
        for sample in samples:
            array, begin, end = places[sample]
            rows += read_rows(array, begin, end).shape[0]
        return rows

    return read


def with_tensorstore(path):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)},
            "fill_missing_data_reads": False}
    return tensorstore.open(spec).result()


def loader_runs(path):
    """{name: run} of DataLoader with 2 workers; the trainer does nothing with what it gets."""
    def passes(samples):
        """Sample numbers of LOADER_PASSES epochs, each in an order of its own."""
        order = list(range(samples))
        for number in range(LOADER_PASSES):
            random.Random(number).shuffle(order)
            yield from order

    def delivered(loader):
        width = nexus_librarian.ActivationStore(path).capture_info(CAPTURE)[""].width
        return sum(len(batch["position_ids"]) for batch in loader) * 2 * width

    def dataset():
        samples = nexus_librarian.ActivationDataset(path, [CAPTURE])
        return delivered(DataLoader(samples, batch_size=8, sampler=list(passes(len(samples))),
                                    num_workers=2, collate_fn=nexus_librarian.collate_packed))

    def stream():
        loader = DataLoader(nexus_librarian.ActivationStream(
            path, [CAPTURE], tokens_per_batch=4096, packed=True), batch_size=None, num_workers=2,
            persistent_workers=True)
        return sum(delivered(loader) for _ in range(LOADER_PASSES))

    return {"ActivationDataset, collate_packed": dataset, "ActivationStream, packed": stream}


def opening_milliseconds(path):
    begin = time.perf_counter()
    store = nexus_librarian.ActivationStore(path)
    opened = time.perf_counter()
    store.sample(0)
    return (opened - begin) * 1e3, (time.perf_counter() - opened) * 1e3


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--folder", default="/dev/shm")
    options = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="reader-bench-", dir=options.folder))
    tool = REPOSITORY / "build/release/tests/bench/reader_store"
    try:
        subprocess.run([tool, folder / "ragged", str(options.mib)], check=True)
        subprocess.run([tool, "--shards", folder / "shards", str(SHARDS)], check=True)
        report(folder, options.rounds)
    finally:
        shutil.rmtree(folder)


def report(folder, rounds):
    path = str(folder / "ragged")
    store = nexus_librarian.ActivationStore(path)
    width = store.capture_info(CAPTURE)[""].width
    print(f"{len(store)} samples of {store.lengths.min()} to {store.lengths.max()} tokens, mean "
          f"{store.lengths.mean():.0f}, width {width}, bfloat16; torch {torch.__version__}, zarr "
          f"{zarr.__version__}, numpy {numpy.__version__}")
    readers = {"ours, torch": ours(path, "torch"), "ours, numpy": ours(path, "numpy"),
               "zarr-python": by_rows(path, lambda at: zarr.open_array(str(at), mode="r"),
                                      lambda array, begin, end: array[begin:end]),
               "tensorstore": by_rows(path, with_tensorstore,
                                      lambda array, begin, end: array[begin:end].read().result())}
    order = list(range(len(store)))
    figures = {name: [] for name in readers}
    for number in range(rounds + 1):  # The first warms caches up and is not counted.
        random.Random(number).shuffle(order)
        for name, read in readers.items():
            figure = measured(lambda: read(order) * 2 * width)
            if number:
                figures[name].append(figure)
    print_figures(figures)
    runs = loader_runs(path)
    figures = {f"2 workers, {name}": [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            figures[f"2 workers, {name}"].append(measured(run))
    print_figures(figures)
    opened, first = zip(*(opening_milliseconds(folder / "shards") for _ in range(rounds)))
    print(f"{SHARDS} shards: opening {statistics.median(opened):.1f} ms, first sample "
          f"{statistics.median(first):.0f} ms")


def print_figures(figures):
    for name, rounds in figures.items():
        cpu, rate = (statistics.median(values) for values in zip(*rounds))
        print(f"{name:48} {cpu:6.2f} CPU s/GB {rate:6.2f} GB/s")


if __name__ == "__main__":
    main()
