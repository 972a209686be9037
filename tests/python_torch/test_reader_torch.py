"""nexus_librarian with torch: samples as tensors, DataLoader's workers, and resuming in the middle."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

import nexus_librarian
from nexus_librarian import (ActivationDataset, ActivationStore, ActivationStream, NotInStoreError,
                             StoreError, _arrays, collate_packed, collate_padded, token_batches)

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "activation_store/golden_store"
CAPTURES = ["blocks.0.resid_post", "blocks.1.resid_post"]
MODES = {"tokens": {"tokens_per_batch": 4, "mix_batches": 2, "lanes": 4},
         "packed": {"tokens_per_batch": 12, "packed": True},
         "padded": {"batch_size": 2},
         "samples": {}}
each_mode = pytest.mark.parametrize("mode", MODES)
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture
def store():
    return ActivationStore(GOLDEN)


@pytest.fixture
def store_copy(tmp_path):
    return pathlib.Path(shutil.copytree(GOLDEN, tmp_path / "store"))


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return one == other if isinstance(one, int) else torch.equal(one, other)


def stream_of(store, mode, **options):
    return ActivationStream(store, CAPTURES, seed=3, **MODES[mode], **options)


def load(stream, workers=0, context="fork"):
    return DataLoader(stream, batch_size=None, num_workers=workers,
                      multiprocessing_context=context if workers else None)


def rows_of(batches):
    """The rows of one capture in all batches, in order, each as a tuple of its bits."""
    rows = []
    for batch in batches:
        values = batch[CAPTURES[1]]
        if values.dim() == 3:
            values = torch.cat([values[i, :n] for i, n in enumerate(batch["lengths"].tolist())])
        rows += map(tuple, values.view(torch.int16).tolist())
    return rows


def all_rows(store):
    return rows_of(store.sample(i) for i in range(len(store)))


def test_tensors_have_the_bits_of_the_store(store):
    plain = ActivationStore(GOLDEN, framework="numpy")
    for i in range(len(store)):
        sample, bits = store.sample(i), plain.sample(i)
        for name in CAPTURES:
            assert sample[name].dtype == torch.bfloat16 and sample[name].shape == bits[name].shape
            want = torch.frombuffer(bytearray(bits[name].tobytes()), dtype=torch.bfloat16)
            assert torch.equal(sample[name].flatten(), want)
        assert sample["input_ids"].dtype == torch.int64
        assert sample["input_ids"].tolist() == bits["input_ids"].tolist()
        assert sample["loss_mask"].tolist() == bits["loss_mask"].tolist()


@pytest.mark.parametrize("context, collate", [("fork", collate_padded), ("fork", collate_packed),
                                              ("spawn", collate_padded)])
def test_a_dataset_gives_the_same_batches_with_any_workers(store, collate, context):
    """Goal: workers, forked or spawned, change neither order nor content."""
    def batches(workers):
        order = torch.Generator().manual_seed(1)
        return list(DataLoader(ActivationDataset(store, CAPTURES), batch_size=3, shuffle=True,
                               generator=order, num_workers=workers, collate_fn=collate,
                               multiprocessing_context=context if workers else None))

    alone = batches(0)
    assert sum(len(batch["lengths"]) for batch in alone) == 8
    for workers in (1, 4) if context == "fork" else (4,):
        got = batches(workers)
        assert len(got) == len(alone) and all(map(same, got, alone))


@each_mode
def test_a_stream_gives_the_same_batches_with_any_workers(store, mode):
    """Goal: DataLoader(stream) is one sequence of batches whatever its workers, in every epoch."""
    for epoch in (0, 1):
        def batches(workers, context="fork"):
            stream = stream_of(store, mode)
            stream.set_epoch(epoch)
            return list(load(stream, workers, context))

        alone = batches(0)
        for workers in (1, 3, 4):
            got = batches(workers)
            assert len(got) == len(alone) and all(map(same, got, alone)), (epoch, workers)
    if mode == "tokens":  # Starting Python for each worker takes seconds.
        got = batches(4, "spawn")
        assert len(got) == len(alone) and all(map(same, got, alone))


@each_mode
def test_an_epoch_has_every_row_once_and_epochs_differ(store, mode):
    stream = stream_of(store, mode)
    first, second = rows_of(stream), rows_of(stream)
    assert sorted(first) == sorted(second) == sorted(all_rows(store))
    assert first != second and stream.epoch == 2
    assert rows_of(stream_of(store, mode, shuffle=False)) == all_rows(store)


@each_mode
def test_ranks_share_an_epoch(store, mode):
    """Goal: batch j goes to rank j % world_size, so that together they see everything once."""
    whole = list(stream_of(store, mode))
    for rank in range(3):
        stream = stream_of(store, mode, rank=rank, world_size=3)
        share = list(load(stream, workers=2))
        assert len(share) == len(whole[rank::3]) == stream.batches()
        assert all(map(same, share, whole[rank::3]))
    even = [list(stream_of(store, mode, rank=rank, world_size=3, drop_last=True))
            for rank in range(3)]
    assert len({len(share) for share in even}) == 1


@each_mode
@pytest.mark.parametrize("before, after", [(0, 0), (0, 2), (2, 0), (3, 2)])
def test_resuming_after_any_batch_loses_and_doubles_nothing(store, mode, before, after):
    """Goal: a state continues exactly, with another number of workers too.

    Method: stop after every batch there is; the workers have then read ahead.
    """
    whole = list(stream_of(store, mode))
    for stop in range(len(whole) + 1):
        stream = stream_of(store, mode)
        batches = iter(load(stream, before))
        for batch in whole[:stop]:
            assert same(next(batches), batch)
        state = stream.state_dict() if before == 0 else stream.state_dict(delivered=stop)
        resumed = stream_of(ActivationStore(GOLDEN), mode)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        rest = list(load(resumed, after))
        assert len(rest) == len(whole) - stop and all(map(same, rest, whole[stop:])), stop


TRAINER = """
import json, os, pathlib, sys
from torch.utils.data import DataLoader
from nexus_librarian import ActivationStream

def main(store, folder, workers):
    stream = ActivationStream(store, seed=8, batch_size=1)
    saved = folder / "state.json"
    if saved.exists():
        stream.load_state_dict(json.loads(saved.read_text()))
    state = stream.state_dict()
    for count, batch in enumerate(DataLoader(stream, batch_size=None, num_workers=workers), 1):
        state = stream.state_dict(delivered=count) if workers else stream.state_dict()
        state["seen"] = batch["input_ids"][0].tolist()
        temporary = folder / "state.json.new"
        temporary.write_text(json.dumps(state))
        temporary.rename(saved)
        print(json.dumps(state["seen"]), flush=True)
        if sys.stdin.readline() != "on\\n":
            os._exit(9)

if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]))
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_trainer_killed_in_the_middle_sees_every_sample_once(store, tmp_path, workers):
    """Goal: kill -9 between two batches, again and again, loses and doubles no sample."""
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    path = str(pathlib.Path(nexus_librarian.__file__).parents[1])
    seen = []
    for batches in (3, 1, 4):
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(GOLDEN), str(tmp_path), str(workers)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": path})
        for number in range(batches):
            seen.append(tuple(json.loads(process.stdout.readline())))
            if number + 1 < batches:
                process.stdin.write("on\n")
                process.stdin.flush()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()
    assert sorted(seen) == sorted(tuple(store.sample(i)["input_ids"].tolist()) for i in range(8))


def test_a_state_fits_its_own_stream_and_stores_alone(store, store_copy):
    stream = stream_of(store, "tokens")
    state = stream.state_dict()
    with pytest.raises(ValueError, match="tokens_per_batch=4; this one has 5"):
        ActivationStream(store, CAPTURES, tokens_per_batch=5, mix_batches=2).load_state_dict(state)
    with pytest.raises(StoreError, match="the state is of 1 stores"):
        stream_of(ActivationStore([GOLDEN, store_copy]), "tokens").load_state_dict(state)
    other = json.loads(json.dumps(state))
    other["stores"][0]["identity"] = "0f" * 32
    with pytest.raises(StoreError, match="golden_store: another store than the state's"):
        stream.load_state_dict(other)
    (store_copy / "part-00001/zarr.json").unlink()
    with pytest.raises(NotInStoreError, match="part 1, which the state's epoch reads, is not there"):
        stream_of(ActivationStore(store_copy), "tokens").load_state_dict(state)


def test_an_epoch_keeps_its_parts_while_the_store_grows(store_copy):
    """Goal: a part completed in the middle of an epoch belongs to the next, after resuming too."""
    hidden = store_copy / "part-00001/zarr.json"
    content = hidden.read_bytes()
    hidden.unlink()
    paths = [store_copy, GOLDEN]
    stream = stream_of(ActivationStore(paths), "samples")
    batches = [next(iter(stream))]
    hidden.write_bytes(content)
    resumed = stream_of(ActivationStore(paths), "samples")
    resumed.load_state_dict(stream.state_dict())
    for one in (stream, resumed):
        assert len(batches + list(one)) == 5 + 8
    taken = [batch for _, batch in zip(range(3), stream)]
    again = stream_of(ActivationStore(paths), "samples")
    again.load_state_dict(stream.state_dict())
    # The part that came late is last in the one store, and in its place in the other.
    rest = list(stream)
    assert len(taken + rest) == 8 + 8
    assert all(map(same, rest, again)) and len(list(resumed)) == 8 + 8


def test_token_batches_mix_scale_and_leave_out_first_tokens(store):
    """Goal: what a sparse autoencoder is trained on: [n, width], mixed, without BOS, of norm 1."""
    capture = CAPTURES[0]
    stream = ActivationStream(store, [capture], tokens_per_batch=10, drop_first_tokens=1,
                              scale="sqrt_width", seed=1)
    batches = list(stream)
    assert [len(batch[capture]) for batch in batches] == [10, 10, 10, 10, 5]
    samples = [store.sample(i, [capture]) for i in range(8)]
    ids = sorted(i for sample in samples for i in sample["input_ids"].tolist()[1:])
    assert sorted(torch.cat([batch["input_ids"] for batch in batches]).tolist()) == ids
    by_id = {i: row * stream.scale[capture] for sample in samples
             for i, row in zip(sample["input_ids"].tolist(), sample[capture])}
    for batch in batches:
        for i, row in zip(batch["input_ids"].tolist(), batch[capture]):
            assert torch.equal(row, by_id[i])
    norms = torch.cat([batch[capture] for batch in batches]).float().norm(dim=1)
    assert norms.mean().item() == pytest.approx(40 ** 0.5, rel=0.02)
    assert [len(batch) for batch in token_batches(store, capture, 20, drop_last=True)] == [20, 20]


def test_shared_memory_is_used_again_but_never_while_a_batch_lives(store, monkeypatch):
    """Goal: the trainer may keep batches as long as it likes; memory that it dropped is reused.

    Method: every array counts as large; forked workers inherit that.
    """
    monkeypatch.setattr(_arrays, "_SHARED_BYTES_MIN", 1)
    alone = [batch for epoch in range(12) for batch in stream_epoch(store, epoch)]
    kept = [batch for epoch in range(12) for batch in load(stream_epoch(store, epoch), 2)]
    assert len(kept) == len(alone) and all(map(same, kept, alone))
    from nexus_librarian import _shared
    _shared._mapped.clear()
    stream = stream_of(ActivationStore([GOLDEN] * 40), "packed")
    count = sum(1 for _ in load(stream, 1))
    (pieces,) = _shared._mapped.values()
    assert count > 100 and len(pieces) < 40, "pieces of dropped batches are not used again"


def stream_epoch(store, epoch):
    stream = stream_of(store, "packed")
    stream.set_epoch(epoch)
    return stream
