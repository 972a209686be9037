"""Memory is a number the user sets, whatever the model's size.

Goal: with --host-memory 512MiB the process stays below 512 MiB plus what code and libraries take,
whether the model has 16 layers or 32, small layers or large; `plan` says so before; what does not
fit is refused with the smallest number that would do.
Method: checkpoints of one to two billion parameters that a server makes up as they are read. Few
tokens: it is the weights that are large. The peak is the kernel's figure for the child process.
"""

import json
import os
import re
import subprocess

import numpy as np
import pytest

from generated_server import LLAMA_1B, GeneratedServer
from make_teacher import LlamaShape, bf16_bytes
from support import GOLDEN, write_raw_tensors, write_tokens

DOES_NOT_FIT = 5
MIB = 1 << 20
LIMIT, ON_TOP = 512 * MIB, 150 * MIB
LAYERS_16 = LLAMA_1B
LAYERS_32 = LlamaShape(hidden=2048, layers=32, ffn=8192, heads=32, kv_heads=8, vocab=32768)
LARGE_LAYERS = LlamaShape(hidden=2048, layers=8, ffn=18432, heads=32, kv_heads=8, vocab=32768)
CAPTURE = "resid_post@spread:2"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """256 tokens in two samples."""
    ids = np.random.default_rng(0).integers(0, 32768, 256).tolist()
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens.safetensors",
                        [ids[:100], ids[100:]])


@pytest.fixture(scope="module")
def serve_shape():
    """serve_shape(shape) -> URL; one server for each shape."""
    servers = {}

    def start(shape):
        if shape not in servers:
            servers[shape] = GeneratedServer(shape, file_count=4).start()
        return servers[shape].url + "model/"

    yield start
    for server in servers.values():
        server.stop()


def run_measured(command):
    """(exit code, stdout, stderr, peak resident bytes as the kernel counted them)."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, out, err, usage.ru_maxrss * 1024


@pytest.fixture(scope="module")
def run_shape(librarian_binary, librarian, serve_shape, tokens, tmp_path_factory):
    """run_shape(shape) -> {"plan", "report", "peak_bytes"}; each shape runs once."""
    results = {}

    def run(shape):
        if shape in results:
            return results[shape]
        store = tmp_path_factory.mktemp("store") / "store"
        job = [serve_shape(shape), "--tokens", str(tokens), "--capture", CAPTURE, "--host-memory",
               "512MiB", "--threads", "2"]
        plan = json.loads(librarian("plan", *job, "--json").stdout)
        code, out, err, peak = run_measured(
            [str(librarian_binary), "extract", *job, "--out", str(store)])
        assert code == 0, out + err
        report = json.loads((store / "report.json").read_text())["runs"][-1]
        results[shape] = {"plan": plan, "report": report, "peak_bytes": peak}
        return results[shape]

    return run


def weight_bytes(shape):
    return sum(bf16_bytes(size) for _, size in shape.tensors())


@pytest.mark.parametrize("shape", [LAYERS_16, LAYERS_32, LARGE_LAYERS],
                         ids=["16 layers", "32 layers", "layers of twice the size"])
def test_a_model_far_larger_than_the_limit_stays_within_it(shape, run_shape):
    assert weight_bytes(shape) > 3 * LIMIT
    run = run_shape(shape)
    assert run["peak_bytes"] <= LIMIT + ON_TOP
    assert run["report"]["resident_peak_bytes"] <= LIMIT + ON_TOP
    assert abs(run["report"]["resident_peak_bytes"] - run["peak_bytes"]) <= 16 * MIB
    assert run["report"]["memory_limit_bytes"] == LIMIT


@pytest.mark.parametrize("shape", [LAYERS_16, LAYERS_32, LARGE_LAYERS],
                         ids=["16 layers", "32 layers", "layers of twice the size"])
def test_the_plan_said_so_before(shape, run_shape):
    run = run_shape(shape)
    memory = run["plan"]["memory"]
    assert memory["total_bytes"] <= memory["limit_bytes"] == LIMIT
    parts = ("packed_weight_bytes", "workspace_bytes", "ring_bytes", "state_bytes", "encode_bytes",
             "table_bytes", "staging_bytes")
    assert memory["total_bytes"] == sum(memory[part] for part in parts)
    assert run["report"]["memory_planned_bytes"] == memory["total_bytes"]
    assert run["peak_bytes"] <= memory["total_bytes"] + ON_TOP


def test_twice_the_layers_take_the_same_memory(run_shape):
    peaks = [run_shape(shape)["peak_bytes"] for shape in (LAYERS_16, LAYERS_32)]
    assert abs(peaks[0] - peaks[1]) <= 32 * MIB, [peak / MIB for peak in peaks]


def test_each_weight_is_fetched_once(run_shape):
    for shape in (LAYERS_16, LARGE_LAYERS):
        report = run_shape(shape)["report"]
        assert report["needed_bytes"] <= report["fetched_bytes"] <= 1.02 * report["needed_bytes"]
        assert report["needed_bytes"] > 3 * LIMIT


# What does not fit.


def smallest_that_would_do(line):
    (number,) = re.findall(r"the smallest that would do is (\d+MiB)", line)
    return number


@pytest.mark.parametrize("command", ["plan", "extract"])
def test_a_large_model_in_too_little_memory_is_refused_with_what_would_do(
        command, refused, librarian, serve_shape, tokens, tmp_path):
    job = (serve_shape(LAYERS_16), "--tokens", tokens, "--capture", CAPTURE)
    line = refused(command, *job, "--out", tmp_path / "store", "--host-memory", "64MiB",
                   exit_code=DOES_NOT_FIT, names=["--host-memory", "64.0 MiB"])
    assert not (tmp_path / "store").exists()
    enough = smallest_that_would_do(line)
    plan = json.loads(librarian("plan", *job, "--host-memory", enough, "--json").stdout)
    assert plan["memory"]["total_bytes"] <= int(enough[:-3]) * MIB
    less = f"{int(enough[:-3]) - 1}MiB"
    assert smallest_that_would_do(refused("plan", *job, "--host-memory", less,
                                          exit_code=DOES_NOT_FIT)) == enough


SMALL_MODEL, SMALL_TOKENS = GOLDEN / "llama" / "model", GOLDEN / "llama" / "tokens.safetensors"


@pytest.mark.parametrize("options", [
    [], ["--state", "memory"], ["--state", "disk"], ["--block-tokens", "64"], ["--threads", "8"],
    ["--capture", "resid_post,attn_out,mlp_out,resid_mid,final.post_norm"], ["--codec", "none"],
    ["--dtype", "f32"], ["--part-tokens", "20"]], ids=" ".join)
def test_the_smallest_memory_that_would_do_does(options, refused, librarian, tmp_path):
    """The job runs in it and gives the same rows as with plenty."""
    job = (SMALL_MODEL, "--tokens", SMALL_TOKENS, "--chunk-tokens", 16, *options)
    line = refused("extract", *job, "--out", tmp_path / "little", "--host-memory", "1MiB",
                   exit_code=DOES_NOT_FIT, names=["--host-memory"])
    librarian("extract", *job, "--out", tmp_path / "little", "--host-memory",
              smallest_that_would_do(line))
    librarian("extract", *job, "--out", tmp_path / "plenty")
    librarian("diff", tmp_path / "little", tmp_path / "plenty")


def test_a_state_that_does_not_fit_waits_on_disk(librarian, refused, tmp_path):
    """65536 tokens of 256 bytes: 16 MiB of state. The smallest limit that keeps it in memory is
    found by asking; a little less, and auto takes the disk while "memory" is refused."""
    ids = np.random.default_rng(1).integers(0, 40, 65536).tolist()
    tokens = write_tokens(tmp_path / "many.safetensors",
                          [ids[i : i + 64] for i in range(0, 65536, 64)])
    job = (SMALL_MODEL, "--tokens", tokens, "--dtype", "f32", "--chunk-tokens", 64, "--capture",
           "attn_out@0")

    def planned(*options):
        return json.loads(librarian("plan", *job, "--json", *options).stdout)

    in_memory = smallest_that_would_do(refused(
        "plan", *job, "--state", "memory", "--host-memory", "1MiB", exit_code=DOES_NOT_FIT,
        names=["--state memory"]))
    less = f"{int(in_memory[:-3]) - 1}MiB"
    assert planned("--host-memory", "1GiB")["memory"]["state"] == "memory"
    plan = planned("--host-memory", less)
    assert plan["memory"]["state"] == "disk"
    assert plan["memory"]["state_bytes"] < 65536 * 256
    assert plan["disk"]["scratch_peak_bytes"] >= 65536 * 256
    line = refused("plan", *job, "--state", "memory", "--host-memory", less, exit_code=DOES_NOT_FIT)
    assert "leave out --state memory" in line


def test_a_job_larger_than_the_disk_limit_is_refused(refused, librarian, tmp_path):
    job = (SMALL_MODEL, "--tokens", SMALL_TOKENS)
    plan = json.loads(librarian("plan", *job, "--json").stdout)
    needed = plan["disk"]["peak_bytes"]
    for command in ("plan", "extract"):
        refused(command, *job, "--out", tmp_path / "store", "--disk-limit", needed - 1,
                exit_code=DOES_NOT_FIT, names=["--disk-limit"])
    assert not (tmp_path / "store").exists()
    librarian("extract", *job, "--out", tmp_path / "store", "--disk-limit", needed)


EXPERTS = 64


def write_large_experts(model, width, hidden, layers, chosen):
    """A model that is nearly all experts, of which a token chooses so many; returns its bytes."""
    rng = np.random.default_rng(1)
    noise = ((rng.integers(0, 1 << 16, 1 << 21, dtype=np.uint16) & 0x80FF) | 0x3C00).tobytes()

    def tensor(*shape):
        size = 2 * int(np.prod(shape))
        at = 2 * int(rng.integers(0, 1 << 20))
        return "BF16", list(shape), (noise[at:] + noise * (size // len(noise) + 1))[:size]

    def ones(size):
        return "BF16", [size], np.full(size, 0x3F80, np.uint16).tobytes()

    head = 64
    config = {
        "model_type": "qwen3_moe", "hidden_size": hidden, "intermediate_size": width,
        "moe_intermediate_size": width, "num_experts": EXPERTS, "num_experts_per_tok": chosen,
        "norm_topk_prob": True, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": head, "vocab_size": 1024,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "hidden_act": "silu", "decoder_sparse_step": 1, "mlp_only_layers": [],
        "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    weight_map, total = {}, 0
    outside = {"lm_head.weight": tensor(1024, hidden), "model.norm.weight": ones(hidden),
               "model.embed_tokens.weight": tensor(1024, hidden)}
    for layer in range(-1, layers):
        prefix = f"model.layers.{layer}."
        tensors = outside if layer < 0 else {
            prefix + "input_layernorm.weight": ones(hidden),
            prefix + "post_attention_layernorm.weight": ones(hidden),
            prefix + "self_attn.q_norm.weight": ones(head),
            prefix + "self_attn.k_norm.weight": ones(head),
            prefix + "self_attn.q_proj.weight": tensor(16 * head, hidden),
            prefix + "self_attn.k_proj.weight": tensor(4 * head, hidden),
            prefix + "self_attn.v_proj.weight": tensor(4 * head, hidden),
            prefix + "self_attn.o_proj.weight": tensor(hidden, 16 * head),
            prefix + "mlp.gate.weight": tensor(EXPERTS, hidden)}
        for expert in range(EXPERTS if layer >= 0 else 0):
            for name, shape in (("gate", (width, hidden)), ("up", (width, hidden)),
                                ("down", (hidden, width))):
                tensors[f"{prefix}mlp.experts.{expert}.{name}_proj.weight"] = tensor(*shape)
        file = f"model-{layer + 1}.safetensors"
        write_raw_tensors(model / file, dict(sorted(tensors.items())))
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(len(data) for _, _, data in tensors.values())
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total


def test_layers_of_experts_twice_the_limit_come_in_stages(librarian, serve, memory_path):
    """Each byte is fetched once, and the bits are those of layers that are there as wholes."""
    model = memory_path / "model"
    assert write_large_experts(model, 1280, 1024, 4, 8) > 1_900_000_000
    ids = np.random.default_rng(0).integers(0, 1024, 1024).tolist()
    tokens = write_tokens(memory_path / "tokens.safetensors", [ids[:400], ids[400:]])
    job = ["--tokens", str(tokens), "--capture", "resid_post@-1,router@-1", "--threads", "2",
           "--skeleton", "no"]
    limit, stores = 256 * MIB, {}
    for name, memory in (("stages", "256MiB"), ("whole", "2GiB")):
        stores[name] = memory_path / name
        librarian("extract", serve(model).url, *job, "--host-memory", memory, "--out", stores[name])
        report = json.loads((stores[name] / "report.json").read_text())["runs"][-1]
        if name == "stages":
            # VmHWM; what wait4() says counts this process, before it became the other.
            assert report["resident_peak_bytes"] <= limit + ON_TOP
            assert report["memory_planned_bytes"] <= limit
            assert report["fetched_bytes"] == report["needed_bytes"]
    plan = json.loads(librarian("plan", model, *job, "--host-memory", "256MiB", "--json").stdout)
    assert plan["memory"]["streamed"] and plan["layer_kinds"][0]["wire_bytes"] > 500_000_000
    librarian("diff", *stores.values())  # Fails where a bit differs.


def run_of(store):
    return json.loads((store / "report.json").read_text())["runs"][-1]


def test_a_part_that_does_not_fit_beside_a_stage_meets_layers_in_groups(librarian, serve,
                                                                        memory_path):
    """Weights are read for each group, over the network or from files that were fetched once; the
    bits are those of layers that are there as wholes."""
    model = memory_path / "model"
    total = write_large_experts(model, 384, 512, 2, 4)
    ids = np.random.default_rng(0).integers(0, 1024, 14000).tolist()
    tokens = write_tokens(memory_path / "tokens.safetensors",
                          [ids[:300], ids[300:5000], *([i] for i in ids[5000:5200]), ids[5200:]])
    url = serve(model).url
    job = ["--tokens", str(tokens), "--capture", "resid_post@-1,router@0", "--threads", "2",
           "--skeleton", "no"]
    stores = {name: memory_path / name for name in ("whole", "ranges", "files", "state on disk")}
    librarian("extract", url, *job, "--host-memory", "2GiB", "--out", stores["whole"])
    small = ["--host-memory", "84MiB"]
    plan = json.loads(librarian("plan", url, *job, *small, "--json").stdout)
    readings = plan["memory"]["readings_per_part"]
    assert readings >= 2 and plan["memory"]["rows_together"] >= 4096
    layers = 2 * plan["layer_kinds"][0]["wire_bytes"]
    assert layers > 2 * 64 * MIB

    text = librarian("plan", url, *job, *small, "--staging", "memory").stdout
    assert f"up to {readings} times a part" in text and "over the network" in text
    librarian("extract", url, *job, *small, "--staging", "memory", "--out", stores["ranges"])
    report = run_of(stores["ranges"])
    outside = 2 * 512 * 1024  # The embedding; no norm and no head are needed.
    # Experts that nobody in a group has chosen do not come for it.
    assert layers + outside < report["fetched_bytes"] <= readings * layers + outside
    assert report["fetched_bytes"] == report["needed_bytes"]
    assert report["memory_planned_bytes"] <= 84 * MIB

    text = librarian("plan", url, *job, *small, "--staging", "disk").stdout
    assert "from the scratch disk, where they are fetched to once" in text
    librarian("extract", url, *job, *small, "--staging", "disk", "--out", stores["files"])
    report = run_of(stores["files"])
    assert report["staging"] == "disk"
    assert total <= report["fetched_bytes"] <= total + MIB  # Headers.

    # Groups that leave no room for staging are better than none.
    plan = json.loads(librarian("plan", url, *job, "--host-memory", "60MiB", "--json").stdout)
    assert plan["memory"]["readings_per_part"] > readings and not plan["staging"]["on_disk"]

    librarian("extract", url, *job, *small, "--state", "disk", "--out", stores["state on disk"])
    for name in ("ranges", "files", "state on disk"):
        librarian("diff", stores["whole"], stores[name])


def test_experts_that_no_token_chose_are_not_fetched(librarian, serve, memory_path):
    """Of a layer that comes in stages: its router has run before most experts are asked for."""
    model = memory_path / "model"
    write_large_experts(model, 384, 512, 2, 2)
    tokens = write_tokens(memory_path / "tokens.safetensors", [[5, 6, 7], [8]])
    url = serve(model).url
    job = ["--tokens", str(tokens), "--capture", "resid_post@-1,router@-1", "--skeleton", "no",
           "--staging", "memory", "--threads", "1"]
    stores = {"stages": memory_path / "stages", "whole": memory_path / "whole"}
    librarian("extract", url, *job, "--host-memory", "1GiB", "--out", stores["whole"])
    librarian("extract", url, *job, "--host-memory", "48MiB", "--out", stores["stages"])
    fetched = {name: run_of(store)["fetched_bytes"] for name, store in stores.items()}
    # At most 8 of 64 experts are chosen, and some come before that is known.
    assert fetched["stages"] < fetched["whole"] / 2
    assert run_of(stores["stages"])["needed_bytes"] == fetched["stages"]
    librarian("diff", *stores.values())


def test_groups_go_on_after_a_kill(librarian, librarian_binary, memory_path):
    """Killed behind a layer, whatever had come of the next one: the same store, its list of weights
    too."""
    model = memory_path / "model"
    write_large_experts(model, 384, 512, 3, 4)
    ids = np.random.default_rng(0).integers(0, 1024, 9000).tolist()
    tokens = write_tokens(memory_path / "tokens.safetensors", [ids[:5000], ids[5000:]])
    job = ["extract", str(model), "--tokens", str(tokens), "--capture", "resid_post@-1",
           "--threads", "2", "--skeleton", "no", "--host-memory", "52MiB", "--save-state-every",
           "0s"]
    stores = [memory_path / name for name in ("at once", "killed")]
    done = librarian(*job, "--out", stores[0], "--json")
    plan = json.loads(librarian("plan", *job[1:-2], "--json").stdout)
    assert plan["memory"]["readings_per_part"] >= 2
    layers = [event for event in map(json.loads, done.stdout.splitlines())
              if event["event"] == "layer_done"]
    # What came for the layers is what was needed, every reading.
    assert sum(layer["fetched_bytes"] for layer in layers) == run_of(stores[0])["needed_bytes"]
    process = subprocess.Popen([str(librarian_binary), *job, "--out", str(stores[1]), "--json"],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "layer_done" and event["layer"] == 0:
            break
    process.kill()
    process.communicate()
    librarian(*job, "--out", stores[1])
    librarian("diff", *stores)
    lists = [(store / "part-00000" / "weights.json").read_bytes() for store in stores]
    assert lists[0] == lists[1]
