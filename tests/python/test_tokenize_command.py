"""`librarian tokenize` as people run it.

Goal: rows of any file become the canonical token file that plan and extract take; rows that fail
are named; a run that fails or is stopped leaves nothing; the program hands over to Python.
Method: run the built program with this interpreter and a small tokenizer.
"""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.numpy

import small_tokenizers as small
from make_teacher import LlamaShape, write_checkpoint
from support import read_safetensors
from tokenize_support import PACKAGE_PATH

TALK = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the mat"}]
ROWS = [{"messages": TALK}, {"text": "one and two"},
        {"input_ids": [5, 6, 7], "loss_mask": [0, 1, 1]}]


@pytest.fixture(autouse=True)
def this_python(monkeypatch):
    monkeypatch.setenv("LIBRARIAN_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE_PATH))


@pytest.fixture
def tokenizer(tmp_path):
    return small.write_tokenizer(tmp_path / "tokenizer", small.byte_level(), small.CHATML)


@pytest.fixture
def rows_file(tmp_path):
    """rows_file(rows) -> path of a JSONL file; strings are lines as they are."""
    def write(rows, name="rows.jsonl"):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
        return tmp_path / name
    return write


@pytest.fixture
def tokenize(librarian, tokenizer, tmp_path):
    """tokenize(files..., options=[...]) -> (what the run says as JSON, arrays of its file)."""
    def run(*files, options=(), out=tmp_path / "tokens.safetensors"):
        done = librarian("tokenize", "--tokenizer", tokenizer, "--input", *files, "--out", out,
                         "--json", *options)
        return json.loads(done.stdout), read_safetensors(out)
    return run


def metadata(path):
    with safetensors.safe_open(path, "numpy") as file:
        return file.metadata()


# The file.


def test_the_file_is_the_canonical_one_with_hashes_of_what_made_it(tokenize, rows_file, tokenizer,
                                                                   tmp_path):
    facts, arrays = tokenize(rows_file(ROWS))
    assert {name: str(array.dtype) for name, array in arrays.items()} == {
        "input_ids": "int32", "offsets": "int64", "loss_mask": "uint8"}
    offsets = arrays["offsets"].tolist()
    assert offsets[0] == 0 and offsets[-1] == len(arrays["input_ids"]) == len(arrays["loss_mask"])
    assert arrays["input_ids"][offsets[2] :].tolist() == [5, 6, 7]
    path = tmp_path / "tokens.safetensors"
    theirs = safetensors.numpy.load_file(path)
    assert all(np.array_equal(theirs[name], arrays[name]) for name in arrays)
    assert metadata(path) == {
        "librarian_tokens": "1", "mask": "assistant", "truncated_samples": "0", "dropped_rows": "0",
        "tokenizer_sha256": hashlib.sha256((tokenizer / "tokenizer.json").read_bytes()).hexdigest(),
        "chat_template_sha256": hashlib.sha256(small.CHATML.encode()).hexdigest()}
    assert facts["samples"] == 3 and facts["tokens"] == offsets[-1]
    assert facts["loss_tokens"] == arrays["loss_mask"].sum()
    assert {file.name for file in tmp_path.iterdir()} == {"tokenizer", "rows.jsonl", path.name}
    assert path.stat().st_mode & 0o777 == 0o666 & ~small_umask()


def small_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_jsonl_gzip_parquet_and_standard_input_give_the_same_bytes(tokenize, rows_file, tokenizer,
                                                                   librarian_binary, tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather"}}]}
    chats = [{"messages": TALK}, {"messages": [TALK[0], call, TALK[0], TALK[1]]}] * 200
    (tokenizer / "chat_template.jinja").write_text(small.TOOLS)
    plain = rows_file(chats)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(chats), tmp_path / "rows.parquet",
                                row_group_size=150)
    contents = []
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.parquet"):
        tokenize(tmp_path / name)
        contents.append((tmp_path / "tokens.safetensors").read_bytes())
    with plain.open("rb") as file:
        subprocess.run([librarian_binary, "tokenize", "--tokenizer", tokenizer, "--input", "-",
                        "--out", tmp_path / "tokens.safetensors"], stdin=file, check=True,
                       capture_output=True)
    contents.append((tmp_path / "tokens.safetensors").read_bytes())
    assert len(set(contents)) == 1


def test_samples_come_in_the_order_of_files_and_rows(tokenize, rows_file):
    first = rows_file([{"input_ids": [i, i]} for i in range(300)], "a.jsonl")
    second = rows_file([{"text": "two"}, {"input_ids": [9]}, {"text": "two"}], "b.jsonl")
    facts, arrays = tokenize(first, second, first, options=["--num-samples", "302"])
    samples = np.split(arrays["input_ids"], arrays["offsets"][1:-1])
    assert [sample.tolist() for sample in samples[:300]] == [[i, i] for i in range(300)]
    assert samples[301].tolist() == [9] and facts["samples"] == 302


# Rows that fail.


def test_failed_rows_are_named_and_the_others_kept(librarian, tokenizer, rows_file, tmp_path):
    bad = ["not json", "[1]", {"text": ""}, {"messages": TALK[:1]}, '{"text": "\\ud800"}'] * 3
    path = rows_file([ROWS[0], "", *bad, ROWS[1]])
    out, errors = tmp_path / "tokens.safetensors", tmp_path / "errors.txt"
    command = ["tokenize", "--tokenizer", tokenizer, "--input", path, "--out", out]
    done = librarian(*command, "--errors", errors)
    lines = done.stderr.splitlines()
    assert len(lines) == 12  # ten rows, that there are more, and the sum
    assert lines[0] == f"librarian: {path}:3: not JSON: Expecting value: line 1 column 1 (char 0)"
    assert str(errors) in lines[10] and "15 rows FAILED" in lines[11]
    listed = errors.read_text().splitlines()
    assert [int(line.removeprefix(f"{path}:").split(":")[0]) for line in listed] == [*range(3, 18)]
    assert metadata(out)["dropped_rows"] == "15"
    assert read_safetensors(out)["offsets"].size == 3
    out.unlink()
    done = librarian(*command, "--strict", exit_code=3)
    assert "--strict allows none" in done.stderr and not out.exists()


def test_a_run_without_a_sample_keeps_the_file_there_was(refused, tokenizer, rows_file, tmp_path):
    out = tmp_path / "tokens.safetensors"
    out.write_text("of yesterday")
    command = ["tokenize", "--tokenizer", tokenizer, "--input", rows_file([]), "--out", out]
    refused(*command, exit_code=3, names=["none of the 0 rows", out])
    assert out.read_text() == "of yesterday"
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer", "rows.jsonl", out.name}


def test_truncated_and_overlong_samples_are_counted(tokenize, rows_file, tmp_path):
    path = rows_file([{"input_ids": [1] * length} for length in (3, 4, 5, 9)])
    facts, arrays = tokenize(path, options=["--max-length", "4"])
    assert np.diff(arrays["offsets"]).tolist() == [3, 4, 4, 4] and facts["truncated_samples"] == 2
    found = metadata(tmp_path / "tokens.safetensors")
    assert found["max_length"] == "4" and found["truncated_samples"] == "2"
    facts, arrays = tokenize(path, options=["--max-length", "4", "--drop-overlong"])
    assert np.diff(arrays["offsets"]).tolist() == [3, 4] and facts["overlong_rows"] == 2
    assert metadata(tmp_path / "tokens.safetensors")["dropped_rows"] == "2"


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_leaves_nothing(number, code, tokenizer, librarian_binary, tmp_path):
    (tmp_path / "out").mkdir()
    process = subprocess.Popen(
        [librarian_binary, "tokenize", "--tokenizer", tokenizer, "--input", "-", "--out",
         tmp_path / "out" / "tokens.safetensors"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdin.write('{"text": ""}\n' * 256)  # A batch, so that it says something.
    process.stdin.flush()
    assert "text is empty" in process.stderr.readline()
    process.send_signal(number)
    assert process.wait(60) == code
    process.communicate()
    assert list((tmp_path / "out").iterdir()) == []


# The command line.


@pytest.mark.parametrize("options, exit_code, names", [
    ([], 2, ["--input and --out are required"]),
    (["--input", "{rows}", "--out", "x.bin"], 2, ["must end in .safetensors"]),
    (["--input", "{rows}", "--out", "/nowhere/x.safetensors"], 2, ["a directory that exists"]),
    (["--input", "a.txt", "--out", "{out}"], 2, ["a.txt: must be .jsonl"]),
    (["--input", "a.jsonl", "--out", "{out}"], 3, ["a.jsonl: No such file"]),
    (["--input", "{list}", "--out", "{out}"], 3, ["is a JSON list"]),
    (["--input", "{notparquet}", "--out", "{out}"], 3, ["x.parquet"]),
    (["--input", "{rows}", "--out", "{out}", "--drop-overlong"], 2, ["needs --max-length"]),
    (["--input", "{rows}", "--out", "{out}", "--max-length", "0"], 2, ["--max-length"]),
    (["--input", "{rows}", "--out", "{out}", "--chat-template", "/nowhere"], 3, ["/nowhere"]),
    (["--input", "{rows}", "--out", "{out}", "--template-kwargs", "1"], 2, ["a JSON object"]),
    (["--input", "{rows}", "--out", "{out}", "--chat-template", "{badtemplate}"], 3,
     ["--chat-template", "Unexpected end of template"]),
], ids=str)
def test_refusals(options, exit_code, names, refused, tokenizer, rows_file, tmp_path):
    places = {"rows": rows_file(ROWS), "out": tmp_path / "t.safetensors",
              "list": rows_file(["[", "1]"], "list.json"), "badtemplate": tmp_path / "bad.jinja",
              "notparquet": rows_file(["x"], "x.parquet")}
    places["badtemplate"].write_text("{% if x %}")
    options = [option.format(**places) for option in options]
    refused("tokenize", "--tokenizer", tokenizer, *options, exit_code=exit_code, names=names)
    assert not places["out"].exists()


@pytest.mark.parametrize("content, names", [
    (None, ["there is no tokenizer.json"]), (b"{}", ["not a tokenizer"])], ids=str)
def test_a_folder_without_a_tokenizer_is_refused(content, names, refused, rows_file, tmp_path):
    (tmp_path / "model").mkdir()
    if content:
        (tmp_path / "model" / "tokenizer.json").write_bytes(content)
    (tmp_path / "model" / "tokenizer.model").write_bytes(b"")
    refused("tokenize", "--tokenizer", tmp_path / "model", "--input", rows_file(ROWS), "--out",
            tmp_path / "t.safetensors", exit_code=3, names=names)


def test_chats_without_a_template_say_which_option_helps(refused, rows_file, tmp_path):
    folder = small.write_tokenizer(tmp_path / "plain", small.byte_level())
    refused("tokenize", "--tokenizer", folder, "--input", rows_file(ROWS), "--out",
            tmp_path / "t.safetensors", exit_code=2, names=["--chat-template FILE"])


def test_help_is_that_of_the_python_command(librarian):
    text = librarian("tokenize", "--help").stdout
    assert "Usage: librarian tokenize" in text and "Exit codes:" in text


@pytest.mark.parametrize("command", ["tokenize", "export"])
def test_a_missing_package_or_python_says_how_to_get_it(command, refused, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    # What lies where the user happens to be is not taken for our package.
    (tmp_path / "nexus_librarian").mkdir()
    for name in ("__init__", command):
        (tmp_path / "nexus_librarian" / f"{name}.py").write_text("print('somebody else')")
    monkeypatch.setenv("PYTHONPATH", "")
    refused(command, "--help", exit_code=2, names=["pip install", f"nexus_librarian.{command}"])
    monkeypatch.setenv("LIBRARIAN_PYTHON", str(tmp_path / "nopython"))
    refused(command, "--help", exit_code=2, names=["nopython", "LIBRARIAN_PYTHON"])


def test_missing_requirements_are_named(refused, tokenizer, rows_file, tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "tokenizers.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'tokenizers'\", name='tokenizers')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{PACKAGE_PATH}")
    refused("tokenize", "--tokenizer", tokenizer, "--input", rows_file(ROWS), "--out",
            tmp_path / "t.safetensors", exit_code=2,
            names=["tokenizers", "nexus-librarian[tokenize]"])


# Back to text.


def test_decode_shows_what_counts(librarian, tokenize, rows_file, tokenizer, tmp_path):
    chat = [{"role": "user", "content": "日本"}, {"role": "assistant", "content": "the 😀\x1b[2J"}]
    tokenize(rows_file([*ROWS, {"messages": chat}]))
    file = tmp_path / "tokens.safetensors"
    decode = ["tokenize", "--tokenizer", tokenizer, "--decode", file]
    assert librarian(*decode, "--sample", 3).stdout == (
        "<|im_start|>user\n日本<|im_end|>\n<|im_start|>assistant\n⟦the 😀\\x1b[2J<|im_end|>⟧\n\n")
    event = json.loads(librarian(*decode, "--json").stdout)
    assert [(part["text"], part["loss"]) for part in event["segments"]] == [
        ("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", False),
        ("the mat<|im_end|>", True), ("\n", False)]
    assert "has samples 0 to 3, not 4" in librarian(*decode, "--sample", 4, exit_code=3).stderr


def test_decode_joins_characters_that_lie_on_a_border_of_the_mask(librarian, tokenizer):
    model = small.byte_level()
    ids = model.encode("a😀", add_special_tokens=False).ids
    assert len(ids) > 2  # The smiley is several tokens.
    row = {"input_ids": ids, "loss_mask": [0, 1] + [0] * (len(ids) - 2)}
    event = json.loads(librarian("tokenize", "--tokenizer", tokenizer, "--decode", "-", "--json",
                                 input=json.dumps(row)).stdout)
    assert "".join(part["text"] for part in event["segments"]) == "a😀"
    assert sum(part["tokens"] for part in event["segments"]) == len(ids)


# Into a job, and from a hub.


def test_plan_and_extract_take_the_file(librarian, tokenize, rows_file, tmp_path):
    write_checkpoint(tmp_path / "teacher", LlamaShape(hidden=64, layers=2, ffn=128, heads=4,
                                                      kv_heads=2, vocab=600), 1, 0)
    facts, arrays = tokenize(rows_file(ROWS))
    job = [tmp_path / "teacher", "--tokens", tmp_path / "tokens.safetensors"]
    assert f"{facts['tokens']} tokens" in librarian("plan", *job).stdout
    librarian("extract", *job, "--out", tmp_path / "acts")
    librarian("verify", tmp_path / "acts")
    import zarr
    part = zarr.open_group(tmp_path / "acts" / "part-00000", mode="r")
    for name, array in arrays.items():
        assert np.array_equal(part[f"tokens/{name}"][:], array)


def test_plan_knows_the_tokenizer_and_template_that_made_the_file(librarian, tokenizer, tokenize,
                                                                  rows_file, tmp_path):
    write_checkpoint(tokenizer, LlamaShape(hidden=64, layers=2, ffn=128, heads=4, kv_heads=2,
                                           vocab=600), 1, 0)
    tokenize(rows_file(ROWS))
    plan = ["plan", tokenizer, "--tokens", tmp_path / "tokens.safetensors", "--json"]
    assert "template" not in str(json.loads(librarian(*plan).stdout)["warnings"])
    (tokenizer / "chat_template.jinja").write_text(small.LLAMA3)
    assert "template" in str(json.loads(librarian(*plan).stdout)["warnings"])
    small.write_tokenizer(tokenizer, small.word_pieces())
    assert "tokenizer" in librarian(*plan, exit_code=3).stderr


def test_a_tokenizer_comes_from_the_hub_with_its_template(librarian, hub, tokenizer, rows_file,
                                                          tokenize, tmp_path):
    (tokenizer / "chat_template.jinja").write_text(small.LLAMA3)
    (tokenizer / "model.safetensors").write_bytes(b"not asked for")
    commit = hub.push("org/chatty", tokenizer)
    path = rows_file(ROWS)
    tokenize(path)
    local = (tmp_path / "tokens.safetensors").read_bytes()
    for place in ("hf://org/chatty", f"hf://org/chatty@{commit}"):
        librarian("tokenize", "--tokenizer", place, "--input", path, "--out",
                  tmp_path / "hub.safetensors")
        assert (tmp_path / "hub.safetensors").read_bytes() == local
    assert not hub.resolves("*.safetensors")


@pytest.mark.parametrize("place, exit_code, names", [
    ("hf://org/nothing", 3, ["no such model"]),
    ("hf://org/chatty@nowhere", 3, ["no such revision"]),
    ("hf://chatty", 2, ["hf://org/name"]), ("hf://org/gated", 3, ["access is restricted"])])
def test_what_a_hub_does_not_give_is_said(place, exit_code, names, hub, refused, tokenizer,
                                          rows_file, tmp_path):
    hub.push("org/chatty", tokenizer)
    hub.push("org/gated", tokenizer)
    hub.gate("org/gated")
    refused("tokenize", "--tokenizer", place, "--input", rows_file(ROWS), "--out",
            tmp_path / "t.safetensors", exit_code=exit_code, names=[place, *names])


def test_a_hub_that_is_not_there_is_a_remote_failure(refused, rows_file, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub_home"))
    refused("tokenize", "--tokenizer", "hf://org/chatty", "--input", rows_file(ROWS), "--out",
            tmp_path / "t.safetensors", exit_code=6, names=["hf://org/chatty", "try again later"])
