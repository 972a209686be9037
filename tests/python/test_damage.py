"""Damage is loud: verify names the file, and no reader of ours returns a wrong value.

Goal: after any flipped byte, lost, shortened, swapped or added file, `verify` exits 7 and names
it, and `inspect` either exits 7 or gives exactly the right values.
Method: a finished store of three parts with several chunks and shards; one change at a time, put
back afterwards. Every position is tried in C++; here a sample of them meets the real program.
"""

import json
import random
import shutil
import signal
import struct
import subprocess
import time

import numpy as np
import pytest
import zarr

from fault_server import ALWAYS, Fault, stall
from support import GOLDEN, bf16_to_f32, read_safetensors, read_store

DAMAGED = 7
FAMILY = GOLDEN / "llama"
TOKENS = FAMILY / "tokens.safetensors"
CAPTURE = "blocks.1.resid_post"
OPTIONS = ("--tokens", TOKENS, "--capture", "resid_post@[0,1]", "--part-tokens", 30,
           "--chunk-tokens", 8, "--shard-tokens", 16)
PARTS, SAMPLES = 3, 5
INDEX_BYTES = 2 * 16 + 4  # Two chunks of two numbers, and a CRC32C.


@pytest.fixture(scope="module")
def store(librarian, tmp_path_factory):
    """The store that tests damage and put back."""
    folder = tmp_path_factory.mktemp("damage") / "store"
    librarian("extract", FAMILY / "model", *OPTIONS, "--out", folder)
    assert verdict(librarian, folder)["state"] == "complete"
    return folder


@pytest.fixture
def scratch_store(store, tmp_path):
    """A copy that a test may do anything to."""
    return shutil.copytree(store, tmp_path / "store")


@pytest.fixture(scope="module")
def right_values(store):
    """[sample] -> float32 [tokens, hidden], read by zarr-python."""
    values = read_store(store)[CAPTURE]
    offsets = read_safetensors(TOKENS)["offsets"]
    return [values[begin:end] for begin, end in zip(offsets, offsets[1:])]


def verdict(librarian, folder):
    done = librarian("verify", folder, "--json", exit_code=None)
    (event,) = [json.loads(line) for line in done.stdout.splitlines()]
    if event["event"] == "verify":
        assert (done.returncode == 0) == (event["state"] == "complete"), event
        assert done.returncode in (0, DAMAGED)
    return event


def found(librarian, store, path):
    """Whether verify calls the store damaged and names this file or the folder it is in."""
    event = verdict(librarian, store)
    name = str(path.relative_to(store))
    return event.get("state") == "damaged" and any(
        name == problem["path"] or name.startswith(problem["path"] + "/")
        or name in problem["message"] for problem in event["problems"])


class Flipped:
    """One byte of a file is another one while the block runs."""

    def __init__(self, path, at, bits):
        self._path, self._at, self._bits = path, at, bits

    def __enter__(self):
        self._whole = self._path.read_bytes()
        data = bytearray(self._whole)
        data[self._at] ^= self._bits
        self._path.write_bytes(data)

    def __exit__(self, *_):
        self._path.write_bytes(self._whole)


def data_files(store):
    """Every file that verify answers for, in a fixed order."""
    return [path for path in sorted(store.rglob("*")) if path.is_file()
            and path.name not in (".lock", "report.json")]


def positions(size, count, rng):
    """The first and the last byte, and others between them."""
    return sorted({0, size - 1, *(rng.randrange(size) for _ in range(count))})


def shards_of(store, capture):
    return sorted(store.glob(f"part-*/{capture}/c/*/0"))


# Flipped bytes.


def test_a_flipped_byte_of_a_small_file_is_found(store, librarian):
    rng = random.Random(1)
    first_part = [path for path in data_files(store)
                  if "part-" not in str(path.relative_to(store)) or "part-00000" in str(path)]
    small = [path for path in first_part if path.suffix == ".json" or "tokens" in path.parts]
    assert len(small) > 10
    missed = []
    for path in small:
        for at in positions(path.stat().st_size, 3, rng):
            with Flipped(path, at, 1 << rng.randrange(8)):
                if not found(librarian, store, path):
                    missed.append(f"{path.relative_to(store)} byte {at}")
    assert not missed, "\n".join(missed)


def test_a_flipped_byte_of_a_shard_index_is_found(store, librarian):
    path = shards_of(store, CAPTURE)[0]
    size = path.stat().st_size
    missed = []
    for at in range(size - INDEX_BYTES, size):
        with Flipped(path, at, 0x80 if at % 2 else 0x01):
            if not found(librarian, store, path):
                missed.append(at)
    assert not missed


def test_flipped_bytes_of_the_payload_are_found(store, librarian):
    """200 places, five files at a time, each of which must be named."""
    rng = random.Random(2)
    shards = shards_of(store, "blocks.*.resid_post")
    assert len(shards) >= 5
    for _ in range(40):
        struck = rng.sample(shards, 5)
        flips = [Flipped(path, rng.randrange(path.stat().st_size), 1 << rng.randrange(8))
                 for path in struck]
        for flip in flips:
            flip.__enter__()
        problems = {problem["path"] for problem in verdict(librarian, store)["problems"]}
        for flip in flips:
            flip.__exit__()
        assert problems == {str(path.relative_to(store)) for path in struck}
    assert verdict(librarian, store)["state"] == "complete"


def inspected(librarian, store, sample, folder):
    """(exit code, text, values or None) of one sample."""
    raw = folder / "values.npy"
    raw.unlink(missing_ok=True)
    done = librarian("inspect", store, "--capture", CAPTURE, "--sample", sample, "--raw", raw,
                     exit_code=None)
    return done.returncode, done.stdout, np.load(raw) if done.returncode == 0 else None


def test_inspect_gives_right_values_or_none(store, librarian, right_values, tmp_path):
    """Flips wherever a sample's values come from: shards, ids, offsets and every zarr.json."""
    rng = random.Random(3)
    texts = []
    for sample in range(SAMPLES):
        code, text, values = inspected(librarian, store, sample, tmp_path)
        assert code == 0
        np.testing.assert_array_equal(values, right_values[sample])
        texts.append(text)
    paths = [path for path in data_files(store) if "blocks.0" not in str(path)]
    codes = []
    for _ in range(120):
        path, sample = rng.choice(paths), rng.randrange(SAMPLES)
        at = rng.randrange(path.stat().st_size)
        with Flipped(path, at, 1 << rng.randrange(8)):
            code, text, values = inspected(librarian, store, sample, tmp_path)
        where = f"{path.relative_to(store)} byte {at} sample {sample}"
        assert code in (0, DAMAGED), where
        if code == 0:
            assert text == texts[sample], where
            np.testing.assert_array_equal(values, right_values[sample], where)
        codes.append(code)
    assert {0, DAMAGED} <= set(codes), "flips that all hit, or all missed, prove little"


# Files that are lost, changed in length, or something else.

KINDS = ["zarr.json", "job.json", "part-00001/zarr.json", "part-00001/weights.json",
         "part-00001/tokens/zarr.json", "part-00001/tokens/input_ids/zarr.json",
         "part-00001/tokens/input_ids/c/0", "part-00001/tokens/offsets/c/0",
         "part-00001/tokens/sample_index/c/0", f"part-00001/{CAPTURE}/zarr.json",
         f"part-00001/{CAPTURE}/c/0/0"]


def cut(byte_count):
    return lambda path: path.write_bytes(path.read_bytes()[:-byte_count])


def emptied(path):
    path.write_bytes(b"")


def grown(path):
    path.write_bytes(path.read_bytes() + b"\0")


def made_a_folder(path):
    path.unlink()
    path.mkdir()


def made_a_link_to_nothing(path):
    path.unlink()
    path.symlink_to("nowhere")


CHANGES = {"a byte too short": cut(1), "40 bytes too short": cut(40), "empty": emptied,
           "a byte too long": grown, "a folder": made_a_folder,
           "a link to nothing": made_a_link_to_nothing}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_no_longer_itself_is_found(name, scratch_store, librarian):
    path = scratch_store / name
    whole = path.read_bytes()
    for change, make in CHANGES.items():
        make(path)
        assert found(librarian, scratch_store, path), change
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
    assert verdict(librarian, scratch_store)["state"] == "complete"


@pytest.mark.parametrize("name", [name for name in KINDS if name != "part-00001/zarr.json"])
def test_a_file_that_is_lost_is_found(name, scratch_store, librarian):
    (scratch_store / name).unlink()
    assert found(librarian, scratch_store, scratch_store / name)


@pytest.mark.parametrize("name", [f"part-00001/{CAPTURE}", f"part-00001/{CAPTURE}/c",
                                  "part-00001/tokens", "part-00001/tokens/offsets"])
def test_a_folder_that_is_lost_is_found(name, scratch_store, librarian):
    shutil.rmtree(scratch_store / name)
    event = verdict(librarian, scratch_store)
    assert event["state"] == "damaged"
    assert any(problem["path"].startswith(name) for problem in event["problems"]), event["problems"]


@pytest.mark.parametrize("name", ["part-00001/notes.txt", f"part-00001/{CAPTURE}/c/0/1",
                                  f"part-00001/{CAPTURE}/c/9/0", "part-00001/tokens/input_ids/c/1",
                                  "part-00001/blocks.9.resid_post/zarr.json",
                                  f"part-00001/{CAPTURE}/.DS_Store"])
def test_a_file_that_does_not_belong_is_found(name, scratch_store, librarian):
    path = scratch_store / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"extra")
    assert found(librarian, scratch_store, path)


def test_a_part_that_does_not_belong_is_found(scratch_store, librarian):
    shutil.copytree(scratch_store / "part-00001", scratch_store / "part-00009")
    assert found(librarian, scratch_store, scratch_store / "part-00009")


# Right files in the wrong place.


def swap(first, second):
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


@pytest.mark.parametrize("first,second", [
    (f"part-00000/{CAPTURE}/c/0/0", "part-00000/blocks.0.resid_post/c/0/0"),
    (f"part-00001/{CAPTURE}/c/0/0", f"part-00001/{CAPTURE}/c/1/0"),
    (f"part-00000/{CAPTURE}", "part-00000/blocks.0.resid_post"),
    ("part-00000", "part-00001"), ("part-00000/tokens", "part-00001/tokens"),
    ("part-00000/weights.json", "part-00000/zarr.json")])
def test_files_that_changed_places_are_found(
        first, second, scratch_store, librarian, right_values, tmp_path):
    swap(scratch_store / first, scratch_store / second)
    event = verdict(librarian, scratch_store)
    assert event["state"] == "damaged" and event["problems"]
    for sample in range(SAMPLES):
        code, _, values = inspected(librarian, scratch_store, sample, tmp_path)
        assert code in (0, DAMAGED)
        if code == 0:
            np.testing.assert_array_equal(values, right_values[sample])


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_other_ids_under_a_right_checksum_of_their_own_are_found(scratch_store, librarian):
    """The file's own CRC32C says it is whole; only the manifest knows that it was another."""
    path = scratch_store / "part-00001/tokens/input_ids/c/0"
    data = bytearray(path.read_bytes()[:-4])
    assert path.read_bytes()[-4:] == struct.pack("<I", crc32c(data)), "not the layout we think"
    data[0] ^= 1
    path.write_bytes(data + struct.pack("<I", crc32c(data)))
    assert found(librarian, scratch_store, path)


# What is there and what is not.


def test_a_whole_store_is_complete(store, librarian):
    event = verdict(librarian, store)
    assert (event["state"], event["parts_complete"], event["parts_total"]) == (
        "complete", PARTS, PARTS)
    text = librarian("verify", store).stdout
    assert f"{PARTS} of {PARTS} parts, none damaged" in text
    # Besides what the manifests list: each part's zarr.json, the store's own two files, and the
    # list of model/.
    assert event["files_checked"] + PARTS + 3 == len(data_files(store))


def test_a_store_without_one_of_its_parts_is_incomplete_and_the_same_command_makes_it_whole(
        scratch_store, store, librarian):
    shutil.rmtree(scratch_store / "part-00001")
    event = verdict(librarian, scratch_store)
    assert (event["state"], event["parts_complete"], event["problems"]) == ("incomplete", 2, [])
    assert "2 of 3 parts, none damaged" in librarian(
        "verify", scratch_store, exit_code=DAMAGED).stdout
    librarian("extract", FAMILY / "model", *OPTIONS, "--out", scratch_store)
    assert verdict(librarian, scratch_store)["state"] == "complete"
    for path in data_files(store):
        assert path.read_bytes() == (scratch_store / path.relative_to(store)).read_bytes(), path


def test_a_store_whose_job_was_killed_says_how_far_it_is(serve, librarian, librarian_binary,
                                                         tmp_path, store):
    """The server stops sending in the second part's weights; then kill -9."""
    fault = Fault(stall(), path="*.safetensors", skip=10, times=ALWAYS)
    server = serve(FAMILY, faults=[fault])
    folder = tmp_path / "store"
    command = [str(librarian_binary), "extract", server.url + "model/", *map(str, OPTIONS), "--out",
               str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (
            fault.struck and (folder / "part-00000/zarr.json").exists()):
        time.sleep(0.02)
    assert process.poll() is None, "it should be waiting for weights"
    process.send_signal(signal.SIGKILL)
    process.wait()
    complete = len(list(folder.glob("part-*/zarr.json")))
    assert 0 < complete < PARTS
    event = verdict(librarian, folder)
    assert (event["state"], event["parts_complete"]) == ("incomplete", complete)
    assert f"{complete} of {PARTS} parts" in librarian("verify", folder, exit_code=DAMAGED).stdout
    assert f"{complete} of {PARTS}" in librarian("inspect", folder).stdout
    librarian("diff", folder, store, exit_code=DAMAGED)

    del server.faults[:]
    librarian(*command[1:])
    assert verdict(librarian, folder)["state"] == "complete"
    librarian("diff", folder, store)


def test_a_lost_shard_is_nan_and_minus_one_to_other_readers(scratch_store, librarian):
    (scratch_store / f"part-00001/{CAPTURE}/c/0/0").unlink()
    (scratch_store / "part-00001/tokens/input_ids/c/0").unlink()
    part = zarr.open_group(scratch_store / "part-00001", mode="r")
    assert np.isnan(bf16_to_f32(part[CAPTURE][:16])).all()
    assert not np.isnan(bf16_to_f32(part[CAPTURE][16:])).any()
    assert (part["tokens/input_ids"][...] == -1).all()


def test_a_damaged_part_is_not_called_complete_by_another_run(scratch_store, librarian):
    path = scratch_store / "part-00001/zarr.json"
    with Flipped(path, 200, 1):
        done = librarian("extract", FAMILY / "model", *OPTIONS, "--out", scratch_store,
                         exit_code=DAMAGED)
    assert str(path) in done.stderr and done.stderr.count("\n") == 1


def test_a_damaged_job_file_stops_a_run(scratch_store, librarian):
    path = scratch_store / "job.json"
    with Flipped(path, 200, 1):
        done = librarian("extract", FAMILY / "model", *OPTIONS, "--out", scratch_store,
                         exit_code=DAMAGED)
    assert str(path) in done.stderr and done.stderr.count("\n") == 1


def test_diff_does_not_call_damaged_stores_equal(scratch_store, store, librarian):
    with Flipped(shards_of(scratch_store, CAPTURE)[0], 100, 1):
        librarian("diff", store, scratch_store, exit_code=DAMAGED)
    librarian("diff", store, scratch_store)
