"""The bytes of a store do not depend on how it was computed.

Goal: array data is a function of model, tokens, captures and partition, not of threads, block size,
memory limits, the place of the state, the way the weights came or the number of processes.
Method: one job, run once as a reference and once per variation; every file of both stores is
compared byte for byte. Over another partition, rows are compared by sample.
"""

import json
import shutil

import numpy as np
import pytest

from fault_server import FaultServer
from support import differing_files, part_attributes, part_folders, read_part, store_files

DOES_NOT_FIT, DIFFERENT = 5, 7
UNIT_BYTES = 4096  # Memory limits are tried in steps of this.


@pytest.fixture(scope="module")
def reference(ragged_job, librarian, tmp_path_factory):
    """The store of one run from local files with the default block size and place of the state."""
    store = tmp_path_factory.mktemp("reference") / "store"
    librarian(*ragged_job.extract(ragged_job.original / "model", store))
    return store


def differing_but_for_verified(store, other):
    """differing_files(), with parts' `verified` and the seal over it left out of the comparison."""

    def normalised(data):
        document = json.loads(data)
        assert document["attributes"].pop("verified") in ("none", "stream", "sha256")
        assert len(document["attributes"].pop("xxh3")) == 32
        return document

    one, two = store_files(store), store_files(other)
    return [name for name in differing_files(store, other)
            if not (name.startswith("part-") and name.count("/") == 1 and name.endswith("zarr.json")
                    and name in one and name in two
                    and normalised(one[name]) == normalised(two[name]))]


def rows_by_sample(store):
    """{(sample, array): bytes of its rows}, read with zarr-python; bf16 widened, which is exact."""
    rows = {}
    for folder in part_folders(store):
        arrays = read_part(folder)
        offsets = arrays["tokens/offsets"]
        names = [name for name in arrays if "/" not in name] + ["tokens/input_ids"]
        for i, sample in enumerate(arrays["tokens/sample_index"]):
            for name in names:
                assert (int(sample), name) not in rows, "a sample is in two parts"
                rows[int(sample), name] = arrays[name][offsets[i] : offsets[i + 1]].tobytes()
    return rows


# The comparison itself.


def flip_a_byte(store):
    path = store / "part-00001/blocks.3.attn_out/c/1/0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return "part-00001/blocks.3.attn_out/c/1/0"


def flip_a_byte_of_a_part_file(store):
    path = store / "part-00002/zarr.json"
    path.write_bytes(path.read_bytes().replace(b'"captures"', b'"Captures"', 1))
    return "part-00002/zarr.json"


def lose_a_shard(store):
    (store / "part-00000/blocks.0.resid_post/c/0/0").unlink()
    return "part-00000/blocks.0.resid_post/c/0/0"


def leave_a_file(store):
    (store / "part-00003/.journal").touch()
    return "part-00003/.journal"


def leave_a_directory(store):
    (store / "scratch").mkdir()
    return "scratch"


@pytest.mark.parametrize("change", [flip_a_byte, flip_a_byte_of_a_part_file, lose_a_shard,
                                    leave_a_file, leave_a_directory])
def test_the_comparison_sees_every_difference(change, reference, memory_path):
    # Goal: "no difference" below means something.
    # Method: one change in a copy, which both comparisons must name and nothing else.
    copy = shutil.copytree(reference, memory_path / "copy")
    assert differing_files(reference, copy) == []
    name = change(copy)
    assert differing_files(reference, copy) == [name]
    assert differing_but_for_verified(reference, copy) == [name]


def test_the_comparison_by_sample_sees_a_changed_value(reference, ragged_job, librarian,
                                                       memory_path):
    # Method: the same tokens through a model of other weights.
    librarian(*ragged_job.extract(ragged_job.replacement / "model", memory_path / "other"))
    one, two = rows_by_sample(reference), rows_by_sample(memory_path / "other")
    assert one.keys() == two.keys()
    changed = {key for key in one if one[key] != two[key]}
    assert changed == {key for key in one if key[1] != "tokens/input_ids"}
    librarian("diff", reference, memory_path / "other", exit_code=DIFFERENT)


def test_the_job_has_the_shapes_that_matter(reference, ragged_job):
    # Goal: the variations below meet samples of one row, across shards, and longer than two shards.
    shard_rows = ragged_job.GEOMETRY[ragged_job.GEOMETRY.index("--shard-tokens") + 1]
    assert len(part_folders(reference)) == ragged_job.PART_COUNT
    lengths, crossing = set(), 0
    for folder in part_folders(reference):
        offsets = read_part(folder)["tokens/offsets"]
        lengths |= set(np.diff(offsets))
        crossing += np.sum(offsets[:-1] // shard_rows != (offsets[1:] - 1) // shard_rows)
    assert min(lengths) == 1 and max(lengths) > 2 * shard_rows and crossing > 3


# Variations of a run from local files.


@pytest.mark.parametrize("options", [
    {"threads": 1},
    {"options": ["--block-tokens", 1]},
    {"options": ["--block-tokens", 16]},
    {"options": ["--block-tokens", 64]},
    {"options": ["--block-tokens", 1000]},
    {"options": ["--block-tokens", "auto"]},
    {"options": ["--state", "memory"]},
    {"options": ["--state", "disk"]},
    {"options": ["--state", "disk", "--block-tokens", 16], "threads": 1},
    {"options": ["--state", "memory", "--save-state-every", 0]},
    {"host_memory": None},
    {"options": ["--staging", "memory"]},
], ids=str)
def test_a_variation_leaves_the_same_bytes(options, reference, ragged_job, librarian, memory_path):
    arguments = dict(options)
    extra = arguments.pop("options", [])
    librarian(*ragged_job.extract(ragged_job.original / "model", memory_path / "store", *extra,
                                  **arguments))
    assert differing_files(reference, memory_path / "store") == []


def smallest_host_memory(librarian, plan, units_max):
    """The least limit, in steps of UNIT_BYTES, that `plan` accepts; found by bisection."""
    refused, accepted = 0, units_max
    while accepted - refused > 1:
        middle = (refused + accepted) // 2
        code = librarian(*plan, "--host-memory", middle * UNIT_BYTES, exit_code=None).returncode
        assert code in (0, DOES_NOT_FIT)
        refused, accepted = (refused, middle) if code == 0 else (middle, accepted)
    return accepted * UNIT_BYTES


@pytest.mark.parametrize("state", ["auto", "memory", "disk"])
def test_the_least_memory_that_plan_accepts_gives_the_same_bytes(state, reference, ragged_job,
                                                                 librarian, memory_path):
    # Goal: a plan that was accepted is kept, and tight buffers change nothing.
    # Method: the smallest limit by bisection over `plan`; one step less must be refused by extract.
    store, model = memory_path / "store", ragged_job.original / "model"
    arguments = ragged_job.extract(model, store, "--state", state, host_memory=None)
    out = arguments.index("--out")
    plan = ["plan", *arguments[1:out], *arguments[out + 2 :]]
    least_bytes = smallest_host_memory(librarian, plan, (256 << 20) // UNIT_BYTES)
    librarian(*arguments, "--host-memory", least_bytes - UNIT_BYTES, exit_code=DOES_NOT_FIT)
    assert not store.exists()
    librarian(*arguments, "--host-memory", least_bytes)
    assert differing_files(reference, store) == []
    (run,) = json.loads((store / "report.json").read_text())["runs"]
    assert run["memory_planned_bytes"] <= run["memory_limit_bytes"] == least_bytes


# The way the weights come.


@pytest.mark.parametrize("options", [["--connections", 1], ["--connections", 8],
                                     ["--connections", 1, "--state", "disk", "--block-tokens", 16]],
                         ids=str)
def test_weights_over_http_give_the_bytes_of_local_files(options, reference, ragged_job, librarian,
                                                         serve, memory_path):
    store = memory_path / "store"
    librarian(*ragged_job.extract(serve(ragged_job.original).url + "model/", store, *options))
    assert differing_but_for_verified(reference, store) == []
    # The rest of the comparison would also hold if `verified` said nothing.
    parts = range(ragged_job.PART_COUNT)
    assert {part_attributes(store, part)["verified"] for part in parts} == {"stream"}
    assert {part_attributes(reference, part)["verified"] for part in parts} == {"none"}
    assert len(differing_files(reference, store)) == ragged_job.PART_COUNT


def test_connections_make_no_difference(ragged_job, librarian, memory_path):
    # Goal: byte for byte, `verified` included.
    with FaultServer(ragged_job.original) as server:
        for count in (1, 8):
            librarian(*ragged_job.extract(server.url + "model/", memory_path / str(count),
                                          "--connections", count))
    assert differing_files(memory_path / "1", memory_path / "8") == []


def test_two_processes_leave_what_one_leaves(reference, ragged_job, start, memory_path):
    store = memory_path / "store"
    programs = [start(*ragged_job.extract(ragged_job.original / "model", store)) for _ in range(2)]
    assert [program.end() for program in programs] == [0, 0], [p.stderr for p in programs]
    assert differing_files(reference, store) == []


# Another partition.


@pytest.mark.parametrize("part_tokens", [1, 50, 1000])
def test_rows_do_not_depend_on_the_partition(part_tokens, reference, ragged_job, librarian,
                                             memory_path):
    # Goal: a token's row is the same whatever part its sample is in.
    # Method: parts of one sample, of a few, and one of all; `librarian diff`, and a comparison of
    # our own by sample.
    store = memory_path / "store"
    librarian(*ragged_job.extract(ragged_job.original / "model", store, part_tokens=part_tokens))
    assert len(part_folders(store)) != ragged_job.PART_COUNT
    librarian("diff", reference, store)
    librarian("diff", store, reference)
    one, two = rows_by_sample(reference), rows_by_sample(store)
    assert one.keys() == two.keys()
    assert [key for key in one if one[key] != two[key]] == []
