"""The command line as people and scripts use it.

Goal: options mean what the help says, output suits who reads it (person, pipe, script), captures
have the names their users know, and every refusal is one line that names the option.
Method: run the program on golden checkpoints; compare plans and stores with numpy, zarr and the
bytes that a server was asked for.
"""

import json
import os
import pty
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from generated_server import GeneratedServer
from make_teacher import LlamaShape, bf16_bytes
from support import (
    GOLDEN, layer_count, part_folders, read_safetensors, read_store, write_tokens)

USAGE, BAD_INPUT = 2, 3
FAMILY = GOLDEN / "llama"
MODEL, TOKENS = FAMILY / "model", FAMILY / "tokens.safetensors"
JOB = (MODEL, "--tokens", TOKENS)
LAYERS = layer_count(MODEL)
HAS_AMX = "amx_bf16" in Path("/proc/cpuinfo").read_text()
COMMANDS = ["plan", "extract", "fetch", "inspect", "verify", "diff"]
EVENTS = {"skeleton_started", "skeleton_done", "part_started", "layer_done", "part_done", "waiting", "warning", "report", "error",
          "plan", "fetch_file", "fetch", "verify", "diff", "inspect", "inspect_capture", "inspect_sample"}


def events(text):
    return [json.loads(line) for line in text.splitlines()]


def last_run(store):
    return json.loads((store / "report.json").read_text())["runs"][-1]


@pytest.fixture(scope="module")
def store(librarian, tmp_path_factory):
    """A finished store with all of the residual stream's names; tests only read it."""
    folder = tmp_path_factory.mktemp("finished") / "store"
    librarian("extract", *JOB, "--out", folder, "--capture",
              "embed,resid_pre@1,resid_post,final.pre_norm,final.post_norm")
    return folder


@pytest.fixture
def serve_shape():
    """serve_shape(LlamaShape(...)) -> server of a checkpoint that does not exist on disk."""
    servers = []

    def start(shape):
        servers.append(GeneratedServer(shape, file_count=3).start())
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


# Help and version.


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_says_what_the_command_does_and_how_it_ends(arguments, librarian):
    done = librarian(*arguments)
    assert "Usage: librarian" in done.stdout and "Exit codes:" in done.stdout
    assert done.stderr == ""


def test_help_lists_every_command(librarian):
    text = librarian("--help").stdout
    assert all(re.search(rf"^  {name} ", text, re.MULTILINE)
               for name in [*COMMANDS, "tokenize", "export"])


def test_help_says_nothing_about_what_is_refused(librarian):
    """Every choice that help offers works: none of them is "not built yet"."""
    text = librarian("extract", "--help").stdout
    assert HAS_AMX or "amx" not in text


def test_version_is_one_line(librarian):
    assert re.fullmatch(r"librarian \d+\.\d+\.\d+\n", librarian("--version").stdout)


# Usage errors: what is wrong, and a word of the line that says so.

WRONG_OPTIONS = {
    "a CUDA device": (["--device", "cuda:0"], "--device cuda:0"),
    "an unknown device": (["--device", "tpu"], "--device tpu"),
    "GPU memory without a GPU": (["--device-memory", "15GiB"], "--device-memory"),
    **({} if HAS_AMX else {"a path of other processors": (["--isa", "amx"], "--isa amx")}),
    "an unknown path": (["--isa", "sse"], "--isa sse"),
    "an unknown dtype": (["--dtype", "f8"], "--dtype f8"),
    "an unknown codec": (["--codec", "gzip"], "--codec gzip"),
    "an unknown state": (["--state", "cloud"], "--state cloud"),
    "unknown staging": (["--staging", "tape"], "--staging tape"),
    "a cache that nothing fills": (["--staging", "memory", "--weights-cache", "c"],
                                   "--weights-cache"),
    "a limit of no cache": (["--cache-limit", "1GiB"], "--cache-limit"),
    "a cache without a name": (["--weights-cache", ""], "--weights-cache"),
    "an unknown option": (["--banana"], "--banana"),
    "an option that is almost right": (["--host-mem", "4GiB"], "--host-mem"),
    "an option without its value": (["--dtype"], "--dtype"),
    "a second model": ([MODEL], "model"),
    "memory without a number": (["--host-memory", "GiB"], "--host-memory"),
    "memory that is empty": (["--host-memory", ""], "--host-memory"),
    "memory of an unknown unit": (["--host-memory", "4GX"], "--host-memory"),
    "memory below nothing": (["--host-memory=-4GiB"], "--host-memory"),
    "memory beyond all numbers": (["--host-memory", "99999999999TiB"], "--host-memory"),
    "memory that is no number": (["--host-memory", "nan"], "--host-memory"),
    "memory in two words": (["--host-memory", "4 GiB 5"], "--host-memory"),
    "an infinite disk": (["--disk-limit", "inf"], "--disk-limit"),
    "a time without a unit": (["--save-state-every", "10"], "--save-state-every"),
    "a time below nothing": (["--save-state-every=-1min"], "--save-state-every"),
    "a time that is a word": (["--save-state-every", "often"], "--save-state-every"),
    "no samples": (["--num-samples", "0"], "--num-samples"),
    "samples below nothing": (["--num-samples=-1"], "--num-samples"),
    "one and a half samples": (["--num-samples", "1.5"], "--num-samples"),
    "no length": (["--max-length", "0"], "--max-length"),
    "no threads": (["--threads", "0"], "--threads"),
    "a million threads": (["--threads", "1000000"], "--threads"),
    "no connections": (["--connections", "0"], "--connections"),
    "parts of nothing": (["--part-tokens", "0"], "--part-tokens"),
    "parts below nothing": (["--part-tokens=-5"], "--part-tokens"),
    "parts of a word": (["--part-tokens", "many"], "--part-tokens"),
    "parts beyond all numbers": (["--part-tokens", "9" * 30], "--part-tokens"),
    "blocks of nothing": (["--block-tokens", "0"], "--block-tokens"),
    "chunks of three": (["--chunk-tokens", "3"], "--chunk-tokens"),
    "chunks of nothing": (["--chunk-tokens", "0"], "--chunk-tokens"),
    "chunks beyond memory": (["--chunk-tokens", str(1 << 40)], "--chunk-tokens"),
    "shards that end inside a chunk": (
        ["--chunk-tokens", "2", "--shard-tokens", "3"], "--shard-tokens"),
    "shards smaller than a chunk": (["--shard-tokens", "1"], "--shard-tokens"),
    "shards of too many chunks": (
        ["--chunk-tokens", "1", "--shard-tokens", "4097"], "--shard-tokens"),
    "a config that is not there": (["--config", "/nowhere.toml"], "/nowhere.toml"),
    "an output that is empty": (["--out", ""], "--out"),
}


@pytest.mark.parametrize("options,word", WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
@pytest.mark.parametrize("command", ["extract", "plan"])
def test_a_wrong_option_is_refused_by_name(command, options, word, refused, tmp_path):
    out = [] if "--out" in options else ["--out", tmp_path / "store"]
    refused(command, *JOB, *out, *options, exit_code=USAGE, names=[word], cwd=tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("arguments,word", [
    ([], "ubcommand"), (["banana"], "banana"), (["extract"], "model"),
    (["extract", MODEL, "--out", "x"], "--tokens"), (["extract", *JOB], "--out"),
    (["inspect"], "directory"), (["verify"], "directory"), (["diff", "a"], "directories"),
    (["verify", "a", "b"], "b"), (["inspect", "a", "--sample", "0"], "--capture"),
    (["inspect", "a", "--capture", "embed", "--raw", "x.npy"], "--sample"),
    (["inspect", "a", "--capture", "embed", "--sample", "x"], "--sample"),
    (["inspect", "a", "--capture", "embed", "--sample", "-1"], "--sample"),
    (["verify", "a", "--banana"], "--banana")], ids=lambda value: " ".join(map(
        str, value)) if isinstance(value, list) else value)
def test_an_incomplete_command_is_refused_by_what_it_lacks(arguments, word, refused, tmp_path):
    refused(*arguments, exit_code=USAGE, names=[word], cwd=tmp_path)


@pytest.mark.parametrize("block_tokens", [
    (1 << 57) - 1, 1 << 57, (1 << 58) - 1, 1 << 58, (1 << 58) + 64, 1 << 59, 10**18 - 1])
def test_blocks_too_large_for_arithmetic_do_not_wrap_around(block_tokens, librarian, tmp_path):
    """A size that overflows 64 bits would look small and then be written beyond its end.

    A block beyond the largest part is that part, so the store is the one of any other block.
    """
    digests = set()
    for name, block in (("small", 16), ("large", block_tokens)):
        out = tmp_path / name
        librarian("extract", *JOB, "--out", out, "--block-tokens", block)
        digests.add(json.loads((out / "report.json").read_text())["runs"][0]["store_digest"])
    assert len(digests) == 1


# Captures.

POST = [f"blocks.{layer}.resid_post" for layer in range(LAYERS)]
PRE = [f"blocks.{layer}.resid_pre" for layer in range(LAYERS)]
CAPTURES = {  # What is asked for, and what it is: names in order of computation.
    "resid_post": POST, "resid_post@all": POST, "resid_post@0": POST[:1],
    "resid_post@-1": POST[-1:],
    "resid_post@[0,-1]": [POST[0], POST[2]], "resid_post@[2,0,2]": [POST[0], POST[2]],
    "resid_post@[ 0 , 2 ]": [POST[0], POST[2]], "resid_post@0..1": POST[:2],
    "resid_post@-2..-1": POST[1:], "resid_post@1..1": POST[1:2], "resid_post@every:1": POST,
    "resid_post@every:2": POST[1:2], "resid_post@every:3": POST[2:],
    "resid_post@spread:1": POST[2:],
    "resid_post@spread:3": POST, "resid_pre@0": PRE[:1], "blocks.1.resid_post": POST[1:2],
    "blocks.-1.resid_post": POST[2:], "blocks.1.hook_resid_post": POST[1:2],
    "blocks.0.hook_resid_pre": PRE[:1], "hook_embed": ["embed"], "embed": ["embed"],
    "hf:0": PRE[:1], "hf:1": PRE[1:2], "hf:3": ["final.post_norm"], "hf:-1": ["final.post_norm"],
    "hf:-2": PRE[2:], "vllm:0": PRE[:1], "vllm:2": PRE[2:], "vllm:3": ["final.pre_norm"],
    "vllm:-1": ["final.pre_norm"], "final.pre_norm": ["final.pre_norm"],
    "resid_post@0,resid_post@0": POST[:1],
    "final.post_norm,embed,attn_out@1,resid_mid@1,mlp_out@1,resid_post@1,resid_pre@1": [
        "embed", "blocks.1.resid_pre", "blocks.1.attn_out", "blocks.1.resid_mid",
        "blocks.1.mlp_out", "blocks.1.resid_post", "final.post_norm"],
}


def planned(librarian, *options):
    (event,) = events(librarian("plan", *JOB, "--json", *options).stdout)
    assert event["event"] == "plan" and event["version"] == 1
    return event


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_capture_means_the_layers_it_says(capture, librarian):
    plan = planned(librarian, "--capture", capture)
    assert [row["name"] for row in plan["captures"]] == CAPTURES[capture]


def test_captures_may_be_given_several_times(librarian):
    plan = planned(librarian, "--capture", "embed", "--capture", "resid_post@0,resid_post@-1")
    assert [row["name"] for row in plan["captures"]] == ["embed", POST[0], POST[2]]


def test_without_captures_every_layers_output_is_kept(librarian):
    assert [row["name"] for row in planned(librarian)["captures"]] == POST


def test_every_eighth_and_spread_layers_of_a_deep_model(librarian, serve_shape):
    """every:8 of 20 layers: the 8th and the 16th; spread:4: the last one included."""
    shape = LlamaShape(hidden=64, layers=20, ffn=64, heads=4, kv_heads=4, vocab=40)
    model = serve_shape(shape).url + "model/"
    for layers, expected in [("every:8", [7, 15]), ("spread:4", [4, 9, 14, 19]),
                             ("spread:8", [2, 4, 7, 9, 12, 14, 17, 19])]:
        (plan,) = events(librarian("plan", model, "--tokens", TOKENS, "--json", "--capture",
                                   f"resid_post@{layers}").stdout)
        assert [row["name"] for row in plan["captures"]] == [
            f"blocks.{layer}.resid_post" for layer in expected]


# transformers: output_hidden_states[i] is the input of layer i and, last, the normed output.
# vLLM: the same without the norm. TransformerLens: hook names.
NOTATIONS = {
    "embed": ("embed", "hf:0", "vllm:0", "hook_embed"),
    "blocks.0.resid_pre": ("embed", "hf:0", "vllm:0", "blocks.0.hook_resid_pre"),
    "blocks.2.resid_pre": ("blocks.1.resid_post", "hf:2", "vllm:2", "blocks.2.hook_resid_pre"),
    "blocks.0.resid_post": ("blocks.0.resid_post", "hf:1", "vllm:1", "blocks.0.hook_resid_post"),
    "blocks.2.resid_post": ("blocks.2.resid_post", "-", "vllm:3", "blocks.2.hook_resid_post"),
    "blocks.1.attn_out": ("blocks.1.attn_out", "-", "-", "blocks.1.hook_attn_out"),
    "blocks.1.mlp_out": ("blocks.1.mlp_out", "-", "-", "blocks.1.hook_mlp_out"),
    "blocks.1.resid_mid": ("blocks.1.resid_mid", "-", "-", "blocks.1.hook_resid_mid"),
    "final.pre_norm": ("blocks.2.resid_post", "-", "vllm:3", "-"),
    "final.post_norm": ("final.post_norm", "hf:3", "-", "-"),
}


def test_plan_gives_each_capture_in_all_notations(librarian):
    rows = planned(librarian, "--capture", ",".join(NOTATIONS))["captures"]
    assert {row["name"]: (row["array"], row["hf"], row["vllm"], row["transformer_lens"])
            for row in rows} == NOTATIONS
    text = librarian("plan", *JOB, "--capture", "blocks.0.resid_post").stdout
    (line,) = [line for line in text.splitlines() if line.strip().startswith("blocks.0")]
    assert all(name in line for name in NOTATIONS["blocks.0.resid_post"])


def test_a_capture_asked_for_by_any_name_has_the_same_values(librarian, tmp_path):
    """hf:1, vllm:1, TransformerLens' name and ours are one tensor: the first layer's output."""
    names = ["hf:1", "vllm:1", "blocks.1.hook_resid_pre", "blocks.0.resid_post"]
    values = []
    for number, name in enumerate(names):
        out = tmp_path / str(number)
        librarian("extract", *JOB, "--out", out, "--capture", name)
        values.append(read_store(out)["blocks.0.resid_post"])
    for name, array in zip(names, values):
        np.testing.assert_array_equal(array, values[0], name)


WRONG_CAPTURES = [
    "resid_post@", "resid_post@x", "resid_post@3", "resid_post@-4", "resid_post@0..",
    "resid_post@..1", "resid_post@1..0", "resid_post@0..3", "resid_post@[]", "resid_post@[0,]",
    "resid_post@[0", "resid_post@0]", "resid_post@every:0", "resid_post@every:4",
    "resid_post@every:x", "resid_post@every:-1", "resid_post@spread:0", "resid_post@spread:4",
    "resid_post@1.5", "resid_post@" + "9" * 30, "resid_post@[" + "0," * 5 + "x]", "embed@1",
    "final.post_norm@all", "hf:4", "hf:-5", "hf:x", "hf:", "vllm:4", "vllm:1.0",
    "blocks.3.resid_post", "blocks.1", "blocks.x.resid_post", "blocks.1.attn.q", "RESID_POST",
    "resid", "logits.top", "logits.topk(k=0)", "logits.topk(k=9999)", "resid_post(rows=last)", "resid_post@0(", ",",
    "embed,,resid_post", "embed,", "", " ", "a\nlibrarian: b", "\x1b[2J"]


@pytest.mark.parametrize("capture", WRONG_CAPTURES, ids=ascii)
def test_a_wrong_capture_is_refused_with_its_text(capture, refused):
    word = f"'{capture}'" if capture.isprintable() else ""
    refused("plan", *JOB, "--capture", capture, exit_code=USAGE, names=["--capture", word])


# Plans.


def test_plan_writes_nothing_and_fetches_headers_only(librarian, serve, tmp_path):
    server = serve(FAMILY)
    librarian("plan", server.url + "model/", "--tokens", TOKENS, "--out", tmp_path / "store",
              cwd=tmp_path)
    assert not any(tmp_path.iterdir())
    assert len(server.requests) == 5  # config, index, one for each file's header


def test_plan_tells_what_extract_then_does(librarian, tmp_path):
    plan = planned(librarian, "--capture", "resid_post@[0,1]", "--part-tokens", "20")
    librarian("extract", *JOB, "--out", tmp_path / "store", "--capture", "resid_post@[0,1]",
              "--part-tokens", "20")
    run = last_run(tmp_path / "store")
    assert plan["parts"] == run["parts_total"] == len(part_folders(tmp_path / "store")) > 1
    files = {path.name: path.stat().st_size for path in (tmp_path / "store/model").iterdir()}
    small = sum(size for name, size in files.items()
                if name not in ("model.safetensors", "librarian.json"))
    assert plan["skeleton_fetch_bytes"] == run["skeleton_bytes"] - small
    assert plan["fetch_bytes"] == run["needed_bytes"] - small
    assert plan["disk"]["skeleton_bytes"] == files["model.safetensors"]
    assert plan["disk"]["raw_bytes"] == run["raw_bytes"] == 2 * plan["tokens"] * 64 * 2
    assert plan["memory"]["total_bytes"] == run["memory_planned_bytes"]


# What is fetched.


FETCHES = {"embed": -1, "resid_post@0": 0, "attn_out@2": 2, "hf:3": 2, "resid_post@-1": 5,
           "final.post_norm": 6}


@pytest.mark.parametrize("capture", FETCHES)
def test_nothing_is_fetched_beyond_the_last_captured_layer(
        capture, librarian, serve_shape, tmp_path):
    """Files are larger than what a look at their headers takes (128 KiB), so bytes can be counted:
    a request that begins at 0 is for a header, all others are for weights."""
    shape = LlamaShape(hidden=256, layers=6, ffn=512, heads=4, kv_heads=2, vocab=512)
    server = serve_shape(shape)
    librarian("extract", server.url + "model/", "--tokens", TOKENS, "--out", tmp_path / "store",
              "--capture", capture, "--skeleton", "no")

    def step_of(name):
        return (-1 if "embed" in name else int(name.split(".")[2]) if "layers" in name
                else 6 if name == "model.norm.weight" else 7)

    needed = sum(bf16_bytes(size) for name, size in shape.tensors()
                 if step_of(name) <= FETCHES[capture])
    requests = [r for r in server.requests if r.path.endswith(".safetensors")]
    assert len([r for r in requests if r.begin == 0]) == 3
    fetched = sum(r.bytes_sent for r in requests if r.begin > 0)
    assert needed <= fetched <= 1.02 * needed
    assert last_run(tmp_path / "store")["fetched_bytes"] == fetched


# Progress and results.


def test_piped_output_is_a_line_per_layer_and_a_report(librarian, tmp_path):
    text = librarian("extract", *JOB, "--out", tmp_path / "store").stdout
    assert "\r" not in text and "\x1b" not in text
    for word in ("embedding", *(f"layer {layer}/{LAYERS - 1}" for layer in range(LAYERS))):
        assert len([line for line in text.splitlines()
                    if word in line and not line.startswith("model/")]) == 1, word
    for word in ("outcome", "weights", "bound", "memory", "store digest"):
        assert re.search(rf"^  {word}", text, re.MULTILINE), word


def test_json_output_is_versioned_events_and_nothing_else(librarian, tmp_path):
    done = librarian("extract", *JOB, "--out", tmp_path / "store", "--json", "--part-tokens", 20)
    lines = events(done.stdout)
    assert {line["event"] for line in lines} <= EVENTS
    assert {line["version"] for line in lines} == {1}
    assert [line["event"] for line in lines][-1] == "report"
    parts = len(part_folders(tmp_path / "store"))
    names = [line["event"] for line in lines]
    assert names.count("part_started") == names.count("part_done") == parts
    assert names.count("layer_done") == parts * (LAYERS + 1)
    assert done.stderr == ""


@pytest.mark.parametrize("arguments,exit_code", [
    (["plan", MODEL, "--tokens", "/nowhere.jsonl"], BAD_INPUT),
    (["verify", "/nowhere"], None), (["inspect", "/nowhere"], None),
    (["diff", "/nowhere", "/nowhere"], None)], ids=lambda value: str(value)[:20])
def test_a_failure_is_an_event_too(arguments, exit_code, librarian):
    done = librarian(*arguments, "--json", exit_code=exit_code)
    (event,) = events(done.stdout)
    assert event["event"] == "error" and event["exit_code"] == done.returncode != 0
    assert done.stderr == f"librarian: {event['message']}\n"


@pytest.mark.parametrize("arguments", [
    ["inspect"], ["verify"], ["inspect", "--capture", "embed"],
    ["inspect", "--capture", "embed", "--sample", "1"]], ids=" ".join)
def test_commands_that_read_a_store_speak_json(arguments, store, librarian):
    done = librarian(arguments[0], store, *arguments[1:], "--json")
    (event,) = events(done.stdout)
    assert event["event"] in EVENTS and event["version"] == 1


def run_on_terminal(command):
    """(exit code, everything the terminal showed)."""
    master, slave = pty.openpty()
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # The last process has closed its end.
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    return process.wait(), shown.decode()


def test_a_terminal_shows_live_progress_and_then_the_report(librarian_binary, tmp_path):
    code, shown = run_on_terminal([str(librarian_binary), "extract", *map(str, JOB), "--out",
                                   str(tmp_path / "store")])
    assert code == 0
    live, report = shown[: shown.rindex("\r\x1b[K")], shown[shown.rindex("\r\x1b[K") + 4 :]
    assert "\r\x1b[Kpart 1/1" in live and "ETA" in live
    assert report.lstrip().startswith("outcome") and "store digest" in report
    assert "part 1/1" not in report


def test_a_failure_on_a_terminal_ends_with_its_line(librarian_binary, tmp_path):
    code, shown = run_on_terminal([str(librarian_binary), "extract", str(MODEL), "--tokens",
                                   "/nowhere.jsonl", "--out", str(tmp_path / "store")])
    assert code == BAD_INPUT and shown.startswith("librarian: --tokens")


def test_output_that_nobody_reads_does_not_stop_the_job(librarian_binary, librarian, tmp_path):
    """As in `librarian extract ... | head -1`: the pipe closes, the store is finished."""
    read_end, write_end = os.pipe()
    process = subprocess.Popen([str(librarian_binary), "extract", *map(str, JOB), "--out",
                                str(tmp_path / "store")], stdout=write_end)
    os.close(write_end)
    os.close(read_end)
    assert process.wait(60) == 0
    librarian("verify", tmp_path / "store")


def test_the_same_command_again_says_already_complete(librarian, tmp_path):
    command = ("extract", *JOB, "--out", tmp_path / "store", "--json")
    first = events(librarian(*command).stdout)[-1]
    again = events(librarian(*command).stdout)
    assert [line["event"] for line in again] == ["report"]
    assert again[0]["outcome"] == "already complete" and again[0]["requests"] == 0
    assert again[0]["store_digest"] == first["store_digest"]


# Options from a file.


def write_toml(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_config_file_means_the_same_as_flags(librarian, tmp_path):
    config = write_toml(tmp_path / "job.toml", [
        f'tokens = "{TOKENS}"', 'capture = ["embed", "resid_post@[0,-1]"]', 'dtype = "f32"',
        "part-tokens = 20", "num-samples = 4", 'codec = "none"', "threads = 1",
        'host-memory = "512MiB"', "allow-nonfinite = true"])
    librarian("extract", MODEL, "--config", config, "--out", tmp_path / "a")
    librarian("extract", *JOB, "--out", tmp_path / "b", "--capture", "embed", "--capture",
              "resid_post@[0,-1]", "--dtype", "f32", "--part-tokens", 20, "--num-samples", 4,
              "--codec", "none", "--threads", 1, "--host-memory", "512MiB", "--allow-nonfinite")
    assert (tmp_path / "a/job.json").read_bytes() == (tmp_path / "b/job.json").read_bytes()
    runs = [last_run(tmp_path / name) for name in "ab"]
    for key in ("store_digest", "threads", "memory_limit_bytes", "memory_planned_bytes"):
        assert runs[0][key] == runs[1][key], key
    librarian("diff", tmp_path / "a", tmp_path / "b")


def test_a_flag_wins_over_the_config_file(librarian, tmp_path):
    config = write_toml(tmp_path / "job.toml", [
        f'tokens = "{TOKENS}"', 'capture = ["resid_post@0"]', 'dtype = "f32"', "num-samples = 4"])
    plan = planned(librarian, "--config", config, "--dtype", "bf16", "--num-samples", "2",
                   "--capture", "embed")
    assert plan["dtype"] == "bf16" and plan["samples"] == 2
    assert [row["name"] for row in plan["captures"]] == ["embed"]


@pytest.mark.parametrize("line,word", [
    ("banana = 1", "banana"), ("dtype = ", "TOML"), ('dtype = "f8"', "--dtype f8"), ("= 1", "TOML"),
    ("[job]\ndtype = 'f32'", "job"), ("dtype = {a = 1}", "dtype"), ("threads = 0", "--threads"),
    ("threads = 'many'", "--threads"), ("num-samples = 1.5", "--num-samples"),
    ("num-samples = -1", "--num-samples"), ("capture = [['embed']]", "capture"),
    ("dtype = 1979-05-27", "dtype"), ("dtype = 'f32'\ndtype = 'f16'", "TOML"),
    ("allow-nonfinite = 'perhaps'", "allow-nonfinite"), ("host-memory = [1, 2]", "host-memory"),
    ('"a\\nb" = 1', "")],
    ids=ascii)
def test_a_wrong_config_file_is_refused_by_the_key(line, word, refused, tmp_path):
    config = write_toml(tmp_path / "job.toml", [line])
    refused("extract", *JOB, "--out", tmp_path / "store", "--config", config, exit_code=USAGE,
            names=[word])


# Samples.


def test_every_format_of_token_files_gives_the_same_job(librarian, tmp_path):
    """The identity holds the canonical samples, so the second file finds the first one's store."""
    samples, mask = [[1, 2, 3], [4, 5, 6], [7, 8, 39]], [[1, 0, 1], [0, 0, 1], [1, 1, 1]]
    write_tokens(tmp_path / "plain.safetensors", samples)
    np.save(tmp_path / "plain.npy", np.array(samples, np.int64))
    np.save(tmp_path / "plain16.npy", np.array(samples, np.uint16))
    rows = "".join(json.dumps({"input_ids": sample}) + "\n" for sample in samples)
    (tmp_path / "plain.jsonl").write_text(rows)
    (tmp_path / "dos.jsonl").write_text("\r\n" + rows.replace("\n", "\r\n\r\n").rstrip())
    write_tokens(tmp_path / "masked.safetensors", samples, sum(mask, []))
    (tmp_path / "masked.jsonl").write_text("".join(
        json.dumps({"id": str(i), "loss_mask": mask[i], "input_ids": samples[i]}) + "\n"
        for i in range(3)))
    for kind, names in {"plain": ["plain.safetensors", "plain.npy", "plain16.npy", "plain.jsonl",
                                  "dos.jsonl"],
                        "masked": ["masked.safetensors", "masked.jsonl"]}.items():
        outcomes = []
        for name in names:
            librarian("extract", MODEL, "--tokens", tmp_path / name, "--out", tmp_path / kind)
            outcomes.append(last_run(tmp_path / kind)["outcome"])
        assert outcomes == ["complete"] + ["already complete"] * (len(names) - 1)
    librarian("diff", tmp_path / "plain", tmp_path / "masked")


def test_one_row_of_npy_is_one_sample(librarian, tmp_path):
    np.save(tmp_path / "row.npy", np.arange(12, dtype=np.int32))
    (plan,) = events(librarian("plan", MODEL, "--tokens", tmp_path / "row.npy", "--json").stdout)
    assert (plan["samples"], plan["tokens"]) == (1, 12)


def test_samples_are_cut_and_counted(librarian, tmp_path):
    """--num-samples 4 --max-length 8 is the job of the samples cut by hand."""
    tokens = read_safetensors(TOKENS)
    bounds = zip(tokens["offsets"], tokens["offsets"][1:])
    samples = [tokens["input_ids"][begin:end].tolist() for begin, end in bounds]
    by_hand = write_tokens(tmp_path / "cut.safetensors", [sample[:8] for sample in samples[:4]])
    cut = ("--num-samples", 4, "--max-length", 8)
    plan = planned(librarian, *cut)
    assert (plan["samples"], plan["tokens"], plan["truncated_samples"]) == (4, 1 + 7 + 8 + 8, 2)
    librarian("extract", *JOB, "--out", tmp_path / "store", *cut)
    librarian("extract", MODEL, "--tokens", by_hand, "--out", tmp_path / "store")
    assert last_run(tmp_path / "store")["outcome"] == "already complete"


def test_more_samples_than_there_are_is_all_of_them(librarian):
    assert planned(librarian, "--num-samples", 1000)["samples"] == 5


def test_a_sample_that_is_cut_has_the_rows_of_the_whole_one(librarian, tmp_path, store):
    """Attention looks back only: the first rows do not depend on what follows."""
    librarian("extract", *JOB, "--out", tmp_path / "cut", "--num-samples", 3, "--max-length", 5,
              "--capture", "resid_post@-1")
    whole, cut = read_store(store)[POST[2]], read_store(tmp_path / "cut")[POST[2]]
    np.testing.assert_array_equal(cut[0:1], whole[0:1])  # lengths 1, 7 and 16 become 1, 5 and 5
    np.testing.assert_array_equal(cut[1:6], whole[1:6])
    np.testing.assert_array_equal(cut[6:11], whole[8:13])


def test_a_sample_beyond_the_models_positions_is_a_warning(librarian, tmp_path):
    tokens = write_tokens(tmp_path / "long.safetensors", [[1] * 65])
    done = librarian("plan", MODEL, "--tokens", tokens)
    assert re.fullmatch(r"librarian: warning: .*65.*--max-length 64.*\n", done.stderr)


# Looking at values.


@pytest.mark.parametrize("capture,array", [
    ("embed", "embed"), ("blocks.1.resid_pre", POST[0]), (POST[1], POST[1]),
    ("final.pre_norm", POST[2]), ("final.post_norm", "final.post_norm")])
@pytest.mark.parametrize("sample", [0, 3])
def test_raw_values_are_those_that_zarr_reads(capture, array, sample, store, librarian, tmp_path):
    librarian("inspect", store, "--capture", capture, "--sample", sample, "--raw",
              tmp_path / "values.npy")
    offsets = read_safetensors(TOKENS)["offsets"]
    expected = read_store(store)[array][offsets[sample] : offsets[sample + 1]]
    values = np.load(tmp_path / "values.npy")
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected)


def test_statistics_are_those_of_the_values(store, librarian):
    (event,) = events(librarian("inspect", store, "--capture", POST[1], "--json").stdout)
    values = read_store(store)[POST[1]].astype(np.float64)
    assert event["shape"] == list(values.shape)
    for key, expected in {"mean": values.mean(), "rms": np.sqrt((values**2).mean()),
                          "min": values.min(), "max": values.max()}.items():
        assert event[key] == pytest.approx(expected, rel=1e-6), key


@pytest.mark.parametrize("options,word", [
    (["--capture", "embed", "--sample", "5"], "5"), (["--capture", "attn_out"], "attn_out"),
    (["--capture", "blocks.1.mlp_out", "--sample", "0"], "blocks.1.mlp_out"),
    (["--capture", "../../job.json"], "job.json"),
    (["--capture", "embed", "--sample", "0", "--raw", "/nowhere/x.npy"], "/nowhere/x.npy")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value)
def test_what_is_not_in_the_store_is_refused_by_name(options, word, store, librarian):
    done = librarian("inspect", store, *options, exit_code=None)
    assert done.returncode in (USAGE, BAD_INPUT, 5) and word in done.stderr
    assert re.fullmatch(r"librarian: [^\n]+\n", done.stderr)


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize("kind", ["nothing", "an empty folder", "a file", "another folder"])
def test_what_is_not_a_store_is_refused_by_name(command, kind, refused, tmp_path):
    path = tmp_path / "thing"
    if kind == "a file":
        path.write_text("")
    elif kind != "nothing":
        path.mkdir()
        if kind == "another folder":
            (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    refused(command, path, exit_code=BAD_INPUT, names=[path])


# Links: caches of downloaded models are folders full of them.


def test_models_tokens_and_outputs_may_be_links(librarian, tmp_path):
    model, outputs = tmp_path / "model", tmp_path / "outputs"
    model.mkdir()
    outputs.mkdir()
    for path in MODEL.iterdir():
        (model / path.name).symlink_to(path)
    (tmp_path / "tokens.safetensors").symlink_to(TOKENS)
    (tmp_path / "link").symlink_to(outputs)
    librarian("extract", model, "--tokens", tmp_path / "tokens.safetensors", "--out",
              tmp_path / "link" / "store")
    librarian("verify", outputs / "store")


def test_raw_values_never_replace_what_is_not_a_file(store, librarian, tmp_path):
    """Writing "to" a device or a pipe must not put a file in its place."""
    target = tmp_path / "pipe.npy"
    os.mkfifo(target)
    librarian("inspect", store, "--capture", "embed", "--sample", "0", "--raw", target,
              exit_code=None, timeout=10)
    assert target.is_fifo()
