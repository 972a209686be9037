"""Plans of the teachers that people distil from, and sizes of those that cannot run yet.

Goal: from headers alone, a user with 15 GiB of device memory and 24 GiB of host memory learns that
the job fits, in which stages and at what cost; a model that we cannot run still tells its sizes.
Method: headers with the shapes of the published checkpoints over sparse files (teacher_headers.py);
an emulated GPU, which takes no memory before a job runs.
"""

import json

import numpy as np
import pytest

from support import write_safetensors, write_tokens
from teacher_headers import CONFIGS, write_teacher

BAD_INPUT = 3
GIB = 1 << 30
# Published sizes: bytes of all weights (of the index, or parameters times their size), and GiB of
# one layer with experts as shipped.
WEIGHTS = {"deepseek_v3": 688_574_839_360, "qwen3_moe": 470_187_269_120,
           "mixtral": 281_241_268_224}
LAYER_GIB = {"deepseek_v3": 10.72, "qwen3_moe": 4.63, "mixtral": 4.66, "gpt_oss": 1.63,
             "glm4_moe": 7.33}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    ids = np.random.default_rng(0).integers(0, 30000, 2048).tolist()
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens.safetensors", [ids] * 16)


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def teacher(request, tmp_path_factory):
    """(name, folder, bytes of weights)"""
    folder = tmp_path_factory.mktemp("teacher") / request.param
    return request.param, folder, write_teacher(folder, request.param)


def plan_of(run, folder, tokens, *options):
    done = run("plan", folder, "--tokens", tokens, "--capture", "resid_post@-1",
               "--host-memory", "24GiB", "--json", *options)
    return json.loads(done.stdout)


def test_a_teacher_fits_a_small_gpu(teacher, tokens, on_gpu):
    name, folder, weight_bytes = teacher
    plan = plan_of(on_gpu, folder, tokens, "--device", "cuda:0", "--device-memory", "15GiB")
    assert weight_bytes == WEIGHTS.get(name, weight_bytes)
    memory, device = plan["memory"], plan["device"]
    assert memory["total_bytes"] <= memory["limit_bytes"] == 24 * GIB
    assert device["weight_bytes"] + device["workspace_bytes"] <= device["limit_bytes"] <= 15 * GIB
    layers = plan["layer_kinds"]
    config = CONFIGS[name]
    assert sum(kind["layers"] for kind in layers) == config["num_hidden_layers"]
    largest = max(layers, key=lambda kind: kind["wire_bytes"])
    assert largest["experts"] > 0
    if name in LAYER_GIB:
        assert largest["wire_bytes"] / GIB == pytest.approx(LAYER_GIB[name], rel=0.01)
    # Every expert is in a stage, and no stage is larger than a buffer.
    text = ", ".join(stage["what"] for stage in device["stages"])
    if device["staged"]:
        assert len(device["stages"]) == largest["stages"] > 1
        assert f"..{largest['experts'] - 1}" in text and "router" in text
    buffer_bytes = device["weight_bytes"] / device["weight_buffers"]
    assert all(stage["bytes"] <= buffer_bytes for stage in device["stages"])


def test_a_teacher_fits_a_computer_without_a_gpu(teacher, tokens, librarian):
    name, folder, _ = teacher
    plan = plan_of(librarian, folder, tokens)
    memory = plan["memory"]
    assert memory["total_bytes"] <= memory["limit_bytes"]
    packed = max(kind["decoded_bytes"] for kind in plan["layer_kinds"])
    assert memory["streamed"] == (packed > 23 * GIB), name


def test_little_host_memory_means_stages_not_a_refusal(teacher, tokens, librarian):
    name, folder, _ = teacher
    done = librarian("plan", folder, "--tokens", tokens, "--capture", "resid_post@-1",
                     "--host-memory", "6GiB", "--state", "auto")
    if name != "gpt_oss":  # Whose layers fit.
        if name not in ("qwen3_moe", "mixtral"):
            assert "comes and goes in up to" in done.stdout
        assert "experts" in done.stdout


def test_a_model_that_cannot_run_tells_its_sizes(librarian, tmp_path, tokens):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(
        {"model_type": "qwen3_next", "hidden_size": 8, "num_hidden_layers": 2}))
    matrix = np.zeros((8, 8), np.float32)
    write_safetensors(model / "model.safetensors", {
        "model.embed_tokens.weight": matrix, "model.layers.0.linear_attn.in_proj.weight": matrix,
        "model.layers.1.linear_attn.in_proj.weight": matrix, "model.layers.1.extra": matrix})
    done = librarian("plan", model, "--tokens", tokens, exit_code=BAD_INPUT)
    assert "2 of model.layers.N, 768 B" in done.stdout
    assert "qwen3_next, 1.00 KiB in 4 tensors" in done.stdout
    assert "execution not supported: model_type" in done.stderr and "qwen3_next" in done.stderr
    done = librarian("plan", model, "--tokens", tokens, "--json", exit_code=BAD_INPUT)
    sizes = json.loads(done.stdout.splitlines()[0])
    assert [layer["bytes"] for layer in sizes["stacks"][0]["layers"]] == [256, 512]
    assert librarian("extract", model, "--tokens", tokens, "--out", tmp_path / "store",
                     exit_code=BAD_INPUT).stdout == ""


def test_a_part_too_large_for_streamed_layers_meets_them_in_groups(librarian, tmp_path):
    # Catches: a refusal, groups that are too small because of a state that could wait on disk, more
    # readings than the tokens together ask for, and costs that are not those of all readings.
    model = tmp_path / "kimi_k2"
    write_teacher(model, "kimi_k2")
    tokens = write_tokens(tmp_path / "tokens.safetensors", [[7] * 8192] * 64)
    job = ["plan", model, "--tokens", tokens, "--capture", "resid_post@-1", "--host-memory"]
    before = 1
    for limit in ("32GiB", "24GiB", "12GiB", "6GiB"):
        plan = json.loads(librarian(*job, limit, "--json").stdout)
        memory = plan["memory"]
        readings, together = memory["readings_per_part"], memory["rows_together"]
        assert memory["total_bytes"] <= memory["limit_bytes"]
        assert readings == -(-64 * 8192 // together) >= before
        before = readings
        wire = sum(kind["layers"] * kind["wire_bytes"] for kind in plan["layer_kinds"])
        outside = plan["fetch_bytes_per_part"] - readings * wire
        assert 0 < outside < 3 * GIB
    assert 4 <= readings <= 8
    text = librarian(*job, "6GiB").stdout
    assert f"up to {readings} times a part" in text and "from the model's disk" in text
