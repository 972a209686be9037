"""Whole weight files on disk: staging, the cache that processes share, and `librarian fetch`.

Goal: however weights come, the store is the same; a kill costs little; processes that share a cache
download a file once and take nothing from each other; limits hold at every moment; nothing is left
behind that was not asked for.
Method: the real program against a server on the loopback that records every range.
"""

import hashlib
import json
import re
import shutil
import signal
import struct
import threading
import time

import numpy as np
import pytest

from fault_server import ALWAYS, Fault, flip_bit, reset, status
from make_teacher import LlamaShape, write_checkpoint
from support import differing_files, part_attributes, write_tokens

USAGE, BAD_INPUT, DAMAGED = 2, 3, 7
SEGMENT_BYTES = 8 << 20
HEAD_BYTES = 128 << 10  # What opening a file reads.


def last_run(store):
    return json.loads((store / "report.json").read_text())["runs"][-1]


def events(done, name):
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [line for line in lines if line["event"] == name]


def sent_bytes(server, model, skip=0):
    """Bytes of weight files that the server sent, heads left out, from record `skip` on."""
    heads = {min(HEAD_BYTES, path.stat().st_size) for path in model.glob("*.safetensors")} | {1}
    return sum(record.bytes_sent for record in server.requests[skip:]
               if record.path.endswith(".safetensors")
               and not (record.begin == 0 and record.end in heads))


def whole_bytes(model):
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder with model/ (3 files of some MB) and tokens of two parts."""
    folder = tmp_path_factory.mktemp("staging")
    shape = LlamaShape(hidden=256, layers=6, ffn=512, heads=4, kv_heads=2, vocab=64)
    write_checkpoint(folder / "model", shape, 3, 1)
    draw = np.random.default_rng(3)
    write_tokens(folder / "tokens.safetensors",
                 [draw.integers(0, shape.vocab, length).tolist() for length in (30, 20, 25, 9)])
    return folder


def extract(job, url, store, *options, host_memory="512MiB"):
    """Arguments; without the skeleton, whose bytes never wait on a disk."""
    return ["extract", url + "model/", "--tokens", job / "tokens.safetensors", "--out", store,
            "--skeleton", "no", "--part-tokens", 50, "--host-memory", host_memory, *options]


# The store, and what is left beside it.


def test_staging_changes_nothing_but_what_is_fetched(job, librarian, serve, tmp_path):
    server = serve(job)
    for mode in ("memory", "disk", "auto"):
        before = len(server.requests)
        librarian(*extract(job, server.url, tmp_path / mode, "--staging", mode))
        sent = sent_bytes(server, job / "model", before)
        run = last_run(tmp_path / mode)
        assert run["staging"] == ("memory" if mode == "memory" else "disk")
        assert sent == run["fetched_bytes"] == run["needed_bytes"]
        if mode != "memory":
            assert sent == whole_bytes(job / "model"), "two parts, one download"
        assert not (tmp_path / mode / "scratch").exists()
        assert differing_files(tmp_path / "memory", tmp_path / mode) == []
        # Plain HTTP states no hash of a file.
        assert part_attributes(tmp_path / mode, 0)["verified"] == "stream"


@pytest.mark.parametrize("options, on_disk, word", [
    (["--staging", "auto"], True, "0.6 %"),
    (["--staging", "memory"], False, "asked"),
    (["--staging", "disk", "--disk-limit", "3MB"], False, "two layers"),
    (["--staging", "disk", "--host-memory", "48MiB", "--connections", "1"], True, "asked"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_plan_says_which_and_why(options, on_disk, word, job, librarian, serve, tmp_path):
    url = serve(job).url
    arguments = ["plan", url + "model/", "--tokens", job / "tokens.safetensors", "--skeleton", "no",
                 *options]
    (plan,) = events(librarian(*arguments, "--json", cwd=tmp_path), "plan")
    staging = plan["staging"]
    assert staging["on_disk"] == on_disk
    assert word in staging["reason"]
    text = librarian(*arguments, cwd=tmp_path).stdout
    assert staging["reason"] in text
    if on_disk:
        assert plan["fetch_bytes"] == staging["file_bytes"] == whole_bytes(job / "model")
        assert plan["memory"]["staging_bytes"] > 0
    else:
        assert plan["memory"]["staging_bytes"] == 0
    assert not any(tmp_path.iterdir())


def test_a_local_model_is_never_staged(job, librarian, tmp_path):
    store = tmp_path / "store"
    librarian("extract", job / "model", "--tokens", job / "tokens.safetensors", "--out", store,
              "--staging", "disk", "--weights-cache", tmp_path / "cache")
    assert last_run(store)["staging"] == "memory"
    assert part_attributes(store, 0)["verified"] == "none"
    assert not (tmp_path / "cache").exists()


# Kill -9.


@pytest.fixture(scope="module")
def large_job(tmp_path_factory):
    """As `job`, with one weight file of about ten segments."""
    folder = tmp_path_factory.mktemp("staging_large")
    shape = LlamaShape(hidden=1024, layers=4, ffn=2816, heads=16, kv_heads=4, vocab=64)
    write_checkpoint(folder / "model", shape, 1, 1)
    write_tokens(folder / "tokens.safetensors", [list(range(20)), list(range(30))])
    return folder


def journalled_segments(journal):
    """Numbers of the segments that a staging journal names."""
    head, tail_bytes, at, segments = struct.Struct("<IIQI"), 4, 0, set()
    data = journal.read_bytes()
    while len(data) - at >= head.size + tail_bytes:
        payload_bytes = head.unpack_from(data, at)[1]
        begin = at + head.size
        at = begin + payload_bytes + tail_bytes
        if at > len(data):
            break
        record = json.loads(data[begin : begin + payload_bytes])
        segments |= {number for number, _ in record.get("segments", [])}
    return segments


@pytest.mark.parametrize("segments_before_the_kill", [1, 5])
def test_a_kill_costs_only_segments_that_were_not_durable(segments_before_the_kill, large_job,
                                                          librarian, serve, start, tmp_path):
    # Method: a slow server; kill -9 as soon as the journal names enough segments.
    connections = 2
    store, model = tmp_path / "store", large_job / "model"
    size = whole_bytes(model)
    assert size > 8 * SEGMENT_BYTES
    server = serve(large_job, bytes_per_second=40e6)
    arguments = extract(large_job, server.url, store, "--staging", "disk",
                        "--connections", connections)
    program = start(*arguments)
    deadline = time.monotonic() + 60
    durable = set()
    while len(durable) < segments_before_the_kill:
        assert time.monotonic() < deadline and program.process.poll() is None, program.stderr
        durable = {number for journal in store.glob("scratch/*/weights/*.journal")
                   for number in journalled_segments(journal)}
        time.sleep(0.005)
    program.end(signal.SIGKILL)
    (journal,) = store.glob("scratch/*/weights/*.journal")
    for directory in (journal.parent, journal.parent.parent):
        assert directory.stat().st_mode & 0o777 == 0o700, directory
    durable = journalled_segments(journal)
    kept_bytes = sum(min(SEGMENT_BYTES, size - number * SEGMENT_BYTES) for number in durable)
    assert kept_bytes < size, "it was done before the kill"

    server.bytes_per_second = None
    before = len(server.requests)
    librarian(*arguments)
    assert sent_bytes(server, model, before) == size - kept_bytes
    assert last_run(store)["fetched_bytes"] == last_run(store)["needed_bytes"] == size - kept_bytes
    librarian(*extract(large_job, server.url, tmp_path / "expected", "--staging", "memory"))
    assert differing_files(store, tmp_path / "expected") == []


def test_memory_stays_within_the_limit_while_files_are_staged(large_job, librarian, serve,
                                                             tmp_path):
    server = serve(large_job)
    librarian(*extract(large_job, server.url, tmp_path / "store", "--staging", "disk",
                       "--connections", "16", host_memory="160MiB"))
    run = last_run(tmp_path / "store")
    assert run["staging"] == "disk"
    assert run["memory_planned_bytes"] <= 160 << 20
    assert run["resident_peak_bytes"] <= run["memory_planned_bytes"] + (150 << 20)


# The cache.


class SizeWatch:
    """The largest sum of sizes that a folder ever has, looked at all the time."""

    def __init__(self, folder):
        self.folder, self.peak_bytes, self._stop = folder, 0, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self):
        while not self._stop.is_set():
            total = 0
            for path in self.folder.glob("*"):
                try:
                    total += path.stat().st_size
                except FileNotFoundError:
                    pass
            self.peak_bytes = max(self.peak_bytes, total)
            time.sleep(0.001)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def test_the_next_job_finds_the_cache(job, librarian, serve, tmp_path):
    server, cache = serve(job), tmp_path / "cache"
    librarian(*extract(job, server.url, tmp_path / "one", "--weights-cache", cache))
    assert sum(path.stat().st_size for path in cache.glob("*.weights")) == whole_bytes(job / "model")
    before = len(server.requests)
    librarian(*extract(job, server.url, tmp_path / "two", "--weights-cache", cache))
    assert sent_bytes(server, job / "model", before) == 0
    assert last_run(tmp_path / "two")["needed_bytes"] == 0
    assert differing_files(tmp_path / "one", tmp_path / "two") == []


def test_a_limited_cache_never_holds_more(job, librarian, serve, tmp_path):
    cache, model = tmp_path / "cache", job / "model"
    sizes = sorted(path.stat().st_size for path in model.glob("*.safetensors"))
    limit = sizes[-1] + sizes[-2] + 40_000
    server = serve(job, bytes_per_second=30e6)
    with SizeWatch(cache) as watch:
        librarian(*extract(job, server.url, tmp_path / "store", "--staging", "disk",
                           "--weights-cache", cache, "--cache-limit", limit))
    assert last_run(tmp_path / "store")["staging"] == "disk"
    assert sizes[-1] < watch.peak_bytes <= limit
    assert sent_bytes(server, model) < 2 * whole_bytes(model), "nothing was kept for part 2"


def test_two_processes_fill_one_cache_with_one_download(job, serve, start, tmp_path):
    server, cache = serve(job, bytes_per_second=8e6), tmp_path / "cache"
    programs = [start("fetch", server.url + "model/", "--weights-cache", cache) for _ in range(2)]
    for program in programs:
        assert program.end() == 0, program.stderr
        assert all(event["kept"] for event in program.events("fetch_file"))
    assert sent_bytes(server, job / "model") == whole_bytes(job / "model")
    fetched = [event["fetched"] for program in programs for event in program.events("fetch_file")]
    assert sorted(fetched) == 3 * [False] + 3 * [True]


def test_two_jobs_share_a_cache_that_holds_one_of_them(job, librarian, serve, start, tmp_path):
    # Goal: neither takes what the other one is using, and both end.
    cache, model = tmp_path / "cache", job / "model"
    sizes = sorted(path.stat().st_size for path in model.glob("*.safetensors"))
    limit = sizes[-1] + sizes[-2] + 40_000
    server = serve(job, bytes_per_second=30e6)
    with SizeWatch(cache) as watch:
        programs = [start(*extract(job, server.url, tmp_path / name, "--staging", "disk",
                                   "--weights-cache", cache, "--cache-limit", limit))
                    for name in ("one", "two")]
        for program in programs:
            assert program.end() == 0, program.stderr
    assert watch.peak_bytes <= limit
    assert differing_files(tmp_path / "one", tmp_path / "two") == []


def test_rot_in_the_cache_is_noticed_before_it_is_used(job, librarian, serve, tmp_path):
    server, cache = serve(job), tmp_path / "cache"
    librarian("fetch", server.url + "model/", "--weights-cache", cache)
    rotten = max(cache.glob("*.weights"), key=lambda path: path.stat().st_size)
    with open(rotten, "r+b") as file:
        file.seek(-5, 2)
        byte = file.read(1)[0]
        file.seek(-5, 2)
        file.write(bytes([byte ^ 16]))
    before = len(server.requests)
    librarian(*extract(job, server.url, tmp_path / "one", "--weights-cache", cache))
    assert sent_bytes(server, job / "model", before) == rotten.stat().st_size
    librarian(*extract(job, server.url, tmp_path / "two", "--staging", "memory"))
    assert differing_files(tmp_path / "one", tmp_path / "two") == []


def test_what_is_not_ours_stays_in_the_cache(job, librarian, serve, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "model.safetensors").write_bytes(b"x" * 10_000_000)
    (cache / "stream-1.weights").write_bytes(b"y")
    librarian("fetch", serve(job).url + "model/", "--weights-cache", cache, "--cache-limit", "6MB")
    assert (cache / "model.safetensors").stat().st_size == 10_000_000
    assert (cache / "stream-1.weights").exists()


# fetch.


def test_fetch_reports_every_file_and_keeps_nothing(job, librarian, serve, tmp_path):
    server = serve(job)
    done = librarian("fetch", server.url + "model/", "--json", cwd=tmp_path)
    files = events(done, "fetch_file")
    assert [file["name"] for file in files] == sorted(p.name for p in
                                                      (job / "model").glob("*.safetensors"))
    for file in files:
        data = (job / "model" / file["name"]).read_bytes()
        assert file["bytes"] == len(data)
        assert file["sha256"] == hashlib.sha256(data).hexdigest()
        assert file["offered_sha256"] is None and file["offers"] == "strong ETag"
        assert file["verified"] == "nothing to compare" and not file["kept"]
    (summary,) = events(done, "fetch")
    assert (summary["files"], summary["wrong"], summary["verified"]) == (3, 0, 0)
    assert not any(tmp_path.iterdir())
    text = librarian("fetch", server.url + "model/").stdout
    assert all(file["name"] in text and file["sha256"] in text for file in files)
    local = events(librarian("fetch", job / "model", "--json"), "fetch_file")
    assert [file["sha256"] for file in local] == [file["sha256"] for file in files]


def test_verify_only_reads_heads(job, librarian, serve):
    server = serve(job)
    files = events(librarian("fetch", server.url + "model/", "--verify-only", "--json"),
                   "fetch_file")
    assert all(file["sha256"] is None and file["verified"] == "not tried" for file in files)
    assert sum(record.bytes_sent for record in server.requests
               if record.path.endswith(".safetensors")) == 3


@pytest.mark.parametrize("keep", [False, True], ids=["in memory", "in a cache"])
def test_fetch_recovers_what_can_be_recovered(keep, job, librarian, serve, tmp_path):
    faults = [Fault(reset(after_bytes=700_000), path="*00002*", skip=1),
              Fault(status(503, retry_after=0), path="*00003*", skip=1, times=2)]
    server = serve(job, faults=faults)
    options = ["--weights-cache", tmp_path / "cache"] if keep else []
    files = events(librarian("fetch", server.url + "model/", "--json", *options), "fetch_file")
    for file in files:
        data = (job / "model" / file["name"]).read_bytes()
        assert file["sha256"] == hashlib.sha256(data).hexdigest()
        assert file["kept"] == keep


def test_fetch_says_what_is_not_a_model_and_what_failed(job, librarian, serve, tmp_path):
    server = serve(job, faults=[Fault(status(404), path="*00002*", times=ALWAYS)])
    done = librarian("fetch", server.url + "model/", exit_code=BAD_INPUT)
    assert "model-00002-of-00003.safetensors" in done.stderr
    librarian("fetch", tmp_path, exit_code=BAD_INPUT)
    librarian("fetch", server.url + "model/", "--cache-limit", "1GB", exit_code=USAGE)


def test_a_flipped_bit_shows_in_the_hash(job, librarian, serve):
    # Without a hash on offer nobody can know; but ours is of what came.
    server = serve(job, faults=[Fault(flip_bit(2_000_000), path="*00001*", times=ALWAYS)])
    (first, *_) = events(librarian("fetch", server.url + "model/", "--json"), "fetch_file")
    right = (job / "model" / first["name"]).read_bytes()
    assert first["sha256"] != hashlib.sha256(right).hexdigest()
    assert first["verified"] == "nothing to compare"


def test_a_stopped_fetch_goes_on_from_the_cache(large_job, librarian, serve, start, tmp_path):
    server, cache = serve(large_job, bytes_per_second=30e6), tmp_path / "cache"
    program = start("fetch", server.url + "model/", "--weights-cache", cache, "--connections", 2)
    deadline = time.monotonic() + 60
    while not any(journalled_segments(path) for path in cache.glob("*.journal")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert program.end(signal.SIGTERM) == 143
    durable = len(journalled_segments(next(cache.glob("*.journal"))))
    server.bytes_per_second = None
    before = len(server.requests)
    (file,) = events(librarian("fetch", server.url + "model/", "--weights-cache", cache, "--json"),
                     "fetch_file")
    data = (large_job / "model" / file["name"]).read_bytes()
    assert file["sha256"] == hashlib.sha256(data).hexdigest() and file["kept"]
    assert sent_bytes(server, large_job / "model", before) <= len(data) - durable * SEGMENT_BYTES
    shutil.rmtree(cache)


# A source that states hashes: the hub, of its large files.


def hub_extract(ragged_job, store, *options):
    return ragged_job.extract("hf://org/tiny-llama", store, "--staging", "disk", *options)


def test_what_the_hub_states_is_what_was_hashed(hub, ragged_job, librarian, tmp_path):
    librarian(*hub_extract(ragged_job, tmp_path / "disk"))
    librarian(*ragged_job.extract("hf://org/tiny-llama", tmp_path / "memory"))
    for part in range(ragged_job.PART_COUNT):
        assert part_attributes(tmp_path / "disk", part)["verified"] == "sha256"
        assert part_attributes(tmp_path / "memory", part)["verified"] == "stream"
    different = differing_files(tmp_path / "disk", tmp_path / "memory")
    assert all(name.endswith("/zarr.json") and name.count("/") == 1 for name in different)
    files = events(librarian("fetch", "hf://org/tiny-llama", "--json"), "fetch_file")
    assert {(file["offers"], file["verified"]) for file in files} == {("sha256", "yes")}
    assert all(file["sha256"] == file["offered_sha256"] for file in files)


@pytest.mark.parametrize("times, exit_code", [(1, 0), (ALWAYS, DAMAGED)])
def test_a_bit_that_flips_on_the_way_is_caught(times, exit_code, hub, ragged_job, librarian,
                                               tmp_path):
    file = ragged_job.original / "model/model-00002-of-00003.safetensors"
    hub.cdn.faults.append(Fault(flip_bit(file.stat().st_size - 9), times=times,
                                covering=file.stat().st_size - 9))
    done = librarian(*hub_extract(ragged_job, tmp_path / "store"), exit_code=exit_code)
    fetch = librarian("fetch", "hf://org/tiny-llama", "--json", exit_code=exit_code)
    if exit_code == 0:
        assert part_attributes(tmp_path / "store", 0)["verified"] == "sha256"
        return
    (name,) = set(re.findall(r"model-\d+-of-\d+\.safetensors", done.stderr))
    stated = hashlib.sha256((file.parent / name).read_bytes()).hexdigest()
    assert f"SHA-256 {stated}" in done.stderr
    assert not list((tmp_path / "store").glob("part-*/zarr.json"))
    verified = {event["name"]: event["verified"] for event in events(fetch, "fetch_file")}
    assert verified[name] == "no"
    (summary,) = events(fetch, "fetch")
    assert summary["wrong"] >= 1
