"""Whole jobs on a GPU, by the command that users type, where there is none.

Goal: what a store promises holds for the CUDA device: every family is transformers' within the
tolerance of its type; the bytes do not depend on blocks, on how much of a layer the device holds,
on the place of the state or on a kill; no part mixes the numbers of two kinds of device.
Method: librarian_on_emulated_gpu, which is the command line with a CUDA runtime that runs the same
kernels on the processor (tests/support/emulated_gpu_devices.cc says what cuda:0 to cuda:3 are).
LIBRARIAN_ALL_GOLDENS=1 runs every family on every emulated GPU.
"""

import json
import os
import re
import signal

import pytest

from fault_server import FaultServer
from support import differing_files, part_attributes, part_folders, read_golden
from test_golden import RUNS, all_captures_of, assert_near_transformers, captures_of, job_of

USAGE, DOES_NOT_FIT, DIFFERENT = 2, 5, 7
GPUS = ["cuda:0", "cuda:1", "cuda:2"]
ALL = os.environ.get("LIBRARIAN_ALL_GOLDENS") == "1"
# Each shape of layer once, and both 16-bit types.
CHOSEN = ["llama", "llama_f16", "gemma2", "cohere", "gpt_neox", "phi3", "bert", "bloom"]
GOLDENS = [(gpu, family, type_name) for gpu in GPUS for family, type_name in RUNS
           if gpu == GPUS[0] or ALL or (family in CHOSEN and type_name != "f32")]


@pytest.mark.parametrize("gpu,family,type_name", GOLDENS, ids=lambda value: value)
def test_captures_agree_with_transformers(gpu, family, type_name, on_gpu, memory_path):
    on_gpu("extract", *job_of(family), "--out", memory_path / "store", "--device", gpu,
           "--dtype", type_name, "--capture", all_captures_of(family))
    assert part_attributes(memory_path / "store", 0)["device_kind"].startswith("cuda-sm")
    assert_near_transformers(memory_path / "store", family, type_name)


# One job, run in many ways.


def llama(store, *options, gpu="cuda:0", model=None):
    """A job of 3 parts over all captures, in blocks that cut the longest sample."""
    folder, *tokens = job_of("llama")
    return ["extract", model or folder, *tokens, "--out", store, "--device", gpu,
            "--capture", captures_of(read_golden("llama")), "--part-tokens", 45,
            "--chunk-tokens", 4, "--shard-tokens", 8,
            *([] if "--block-tokens" in options else ["--block-tokens", 16]), *options]


def planned_device_bytes(store):
    """Of the last run."""
    return json.loads((store / "report.json").read_text())["runs"][-1]["device_planned_bytes"]


@pytest.fixture(scope="module", params=GPUS)
def gpu(request):
    return request.param


@pytest.fixture(scope="module")
def reference(gpu, on_gpu, tmp_path_factory):
    """The store of one run on a roomy GPU."""
    store = tmp_path_factory.mktemp("reference") / "store"
    on_gpu(*llama(store, gpu=gpu))
    assert len(part_folders(store)) == 3
    return store


def least_device_memory(on_gpu, store, gpu):
    """What would do, as the program says of a GPU with one byte."""
    said = on_gpu(*llama(store, "--device-memory", 1, gpu=gpu), exit_code=DOES_NOT_FIT).stderr
    assert not store.exists()
    return 1 + int(re.search(r"; (\d+) bytes more would do\n", said)[1])


def test_the_bytes_do_not_depend_on_blocks_or_the_place_of_the_state(gpu, reference, on_gpu,
                                                                     memory_path):
    for i, options in enumerate([["--block-tokens", 1], ["--block-tokens", 1000],
                                 ["--state", "disk"], ["--state", "disk", "--block-tokens", 7]]):
        on_gpu(*llama(memory_path / str(i), *options, gpu=gpu))
        assert differing_files(reference, memory_path / str(i)) == [], options


def test_the_bytes_do_not_depend_on_how_much_the_device_holds(gpu, reference, on_gpu, memory_path):
    # Goal: layers that come in stages are those that come whole.
    # Method: from what whole layers need down to the least that the program says would do; one
    # byte less is refused.
    whole = planned_device_bytes(reference)
    least = least_device_memory(on_gpu, memory_path / "refused", gpu)
    on_gpu(*llama(memory_path / "refused", "--device-memory", least - 1, gpu=gpu),
           exit_code=DOES_NOT_FIT)
    planned = []
    for limit in (whole, whole - 1, (whole + least) // 2, least):
        store = memory_path / str(limit)
        on_gpu(*llama(store, "--device-memory", limit, gpu=gpu))
        planned.append(planned_device_bytes(store))
        assert planned[-1] <= limit
        assert differing_files(reference, store) == [], limit
    assert planned[0] == whole and planned[-1] == least
    on_gpu(*llama(memory_path / "disk", "--device-memory", least, "--state", "disk", gpu=gpu))
    assert differing_files(reference, memory_path / "disk") == []


def test_two_gpus_of_one_kind_leave_the_same_bytes(reference, gpu, on_gpu, memory_path):
    """Another order of copies and kernels is no other kind."""
    if gpu != "cuda:0":
        pytest.skip("cuda:3 is of cuda:0's kind")
    on_gpu(*llama(memory_path / "store", gpu="cuda:3"))
    assert differing_files(reference, memory_path / "store") == []


@pytest.mark.parametrize("staged", [False, True], ids=["whole_layers", "stages"])
def test_a_killed_job_resumes_to_the_same_bytes(staged, reference, gpu, on_gpu, start_program,
                                                emulated_gpu_binary, memory_path):
    store = memory_path / "store"
    limit = (["--device-memory", planned_device_bytes(reference) - 1] if staged else [])
    for layers in (3, 2):
        program = start_program(emulated_gpu_binary, *llama(store, *limit, gpu=gpu))
        assert program.wait_for("layer_done", layers), program.stderr
        program.end(signal.SIGKILL)
    assert len(part_folders(store)) < 3
    on_gpu(*llama(store, *limit, gpu=gpu))
    assert differing_files(reference, store) == []


# Two kinds of device.


def test_the_cpus_store_differs_in_low_bits_only(on_gpu, memory_path):
    kinds = {}
    for name, options in (("cpu", {"gpu": "cpu"}), ("gpu", {})):
        on_gpu(*llama(memory_path / name, "--dtype", "f32", **options))
        kinds[name] = part_attributes(memory_path / name, 0)["device_kind"]
    assert kinds["cpu"].startswith("cpu-") and kinds["gpu"].startswith("cuda-")
    told = on_gpu("diff", memory_path / "cpu", memory_path / "gpu", "--json", exit_code=DIFFERENT)
    report = json.loads(told.stdout)
    assert max(capture["relative_error_max"] for capture in report["captures"]) < 1e-5
    assert all(not capture["incomparable"] for capture in report["captures"])
    assert not any(report[side] for side in ("captures_only_a", "captures_only_b",
                                             "samples_only_a", "samples_only_b"))
    (embed,) = (capture for capture in report["captures"] if capture["name_a"] == "embed")
    assert embed["equal"]


@pytest.mark.parametrize("first,then", [("cpu", "cuda:0"), ("cuda:0", "cpu"),
                                        ("cuda:0", "cuda:2")], ids=str)
def test_a_part_begun_on_another_kind_starts_again(first, then, on_gpu, start_program,
                                                   emulated_gpu_binary, memory_path):
    # Goal: no part mixes kinds; finished parts stay, and the store says that they differ.
    # Method: kill inside the second part, as slow weights let us, and go on with the other device.
    store = memory_path / "store"
    with FaultServer(job_of("llama")[0].parent, bytes_per_second=1e6) as server:
        model = server.url + "model/"
        program = start_program(emulated_gpu_binary, *llama(store, gpu=first, model=model))
        assert program.wait_for("part_done"), program.stderr
        done = len(program.events("layer_done"))
        assert program.wait_for("layer_done", done + 2), program.stderr
        program.end(signal.SIGKILL)
        finished = {folder.name for folder in part_folders(store)}
        assert finished == {"part-00000"}
        program = start_program(emulated_gpu_binary, *llama(store, gpu=then, model=model))
        assert program.end() == 0, program.stderr
    begun = {event["part"]: event["first_layer"] for event in program.events("part_started")}
    assert begun == {1: -1, 2: -1}
    kinds = [part_attributes(store, part)["device_kind"] for part in range(3)]
    assert kinds[0] != kinds[1] == kinds[2]
    assert "mixed" in on_gpu("inspect", store).stdout
    on_gpu("verify", store)
    for device, part in ((first, 0), (then, 1), (then, 2)):
        alone = memory_path / device.replace(":", "")
        if not alone.exists():
            on_gpu(*llama(alone, gpu=device))
            assert "uniform" in on_gpu("inspect", alone).stdout
        differing = [name for name in differing_files(alone, store)
                     if name.startswith(f"part-{part:05d}/") and "/c/" in name]
        assert differing == []


# What is refused.


@pytest.mark.parametrize("options,words", [
    (["--device", "cuda:x"], "--device cuda:x"),
    (["--device", "cuda:"], "--device cuda:"),
    (["--device", "cuda:-1"], "--device cuda:-1"),
    (["--device", "cuda:99999999999"], "--device cuda:99999999999"),
    (["--device", "cuda:4"], "--device cuda:4"),
    (["--device", "cuda:0", "--isa", "portable"], "--isa portable"),
    (["--device", "cpu", "--device-memory", "1GiB"], "--device-memory"),
    (["--device-memory", "1GiB"], "--device-memory"),
    (["--device", "cuda:0", "--device-memory", "much"], "--device-memory"),
], ids=str)
def test_wrong_devices_are_refused_in_a_sentence(options, words, on_gpu, tmp_path):
    done = on_gpu("extract", *job_of("llama"), "--out", tmp_path / "store", *options,
                  exit_code=USAGE)
    assert re.fullmatch(r"librarian: [^\n]+\n", done.stderr), done.stderr
    assert words in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_librarian_without_cuda_says_how_to_get_it(librarian, emulated_gpu_binary, tmp_path):
    # The program on the emulated GPU is only built where the CUDA device is not.
    done = librarian("extract", *job_of("llama"), "--out", tmp_path / "store",
                     "--device", "cuda:0", exit_code=USAGE)
    assert re.fullmatch(r"librarian: [^\n]+\n", done.stderr), done.stderr
    assert "--device cuda:0" in done.stderr and "cmake --preset cuda" in done.stderr
    assert not (tmp_path / "store").exists()
