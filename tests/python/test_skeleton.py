"""DIR/model/: the teacher without its layers, as trainers of drafts load it.

Goal: the checkpoint's own tensors and files, whole or absent, the same bytes whenever a job ends;
damage is named; tokens that another tokenizer made are refused.
Method: the real program on a small model with tokenizer files, its result read with the safetensors
package, and against a server that records what it sent.
"""

import hashlib
import json
import shutil

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from fault_server import ALWAYS, Fault, status
from support import differing_files, last_run, read_safetensors, token_arrays

BAD_INPUT, DAMAGED = 3, 7
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
TOKENIZER_FILES = {
    "tokenizer.json": json.dumps({"model": {"vocab": {"wörd" * 30000: 0}}}),
    "tokenizer_config.json": json.dumps({"chat_template": TEMPLATE}),
    "generation_config.json": "{}\n", "vocab.json": "{}", "merges.txt": "a b\n",
}


@pytest.fixture(scope="module")
def model(ragged_job, tmp_path_factory):
    """A folder with model/, which has tokenizer files."""
    folder = tmp_path_factory.mktemp("teacher")
    shutil.copytree(ragged_job.original / "model", folder / "model")
    for name, text in TOKENIZER_FILES.items():
        (folder / "model" / name).write_text(text)
    (folder / "model" / "README.md").write_text("not for trainers")
    return folder


@pytest.fixture(scope="module")
def store(model, ragged_job, librarian, tmp_path_factory):
    folder = tmp_path_factory.mktemp("skeleton") / "store"
    librarian(*ragged_job.extract(model / "model", folder))
    return folder


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def verified(librarian, store, exit_code=0):
    return json.loads(librarian("verify", store, "--json", exit_code=exit_code).stdout)


def test_it_is_a_checkpoint_of_what_lies_outside_the_layers(model, store):
    parts = {}
    for path in (model / "model").glob("*.safetensors"):
        parts |= read_safetensors(path, widen_bf16=False)
    wanted = {name for name in parts if ".layers." not in name}
    assert wanted == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    with safe_open(store / "model/model.safetensors", "np") as file:
        assert set(file.keys()) == wanted
        assert file.metadata() == {"format": "pt"}
        assert {file.get_slice(name).get_dtype() for name in wanted} == {"BF16"}
    ours = read_safetensors(store / "model/model.safetensors", widen_bf16=False)
    for name in wanted:
        assert np.array_equal(ours[name], parts[name]), name
    for name in ["config.json", *TOKENIZER_FILES]:
        assert (store / "model" / name).read_bytes() == (model / "model" / name).read_bytes(), name
    assert {path.name for path in (store / "model").iterdir()} == {
        "librarian.json", "model.safetensors", "config.json", *TOKENIZER_FILES}


def test_its_bytes_are_fetched_once_and_counted(model, store, ragged_job, librarian, serve, tmp_path):
    server = serve(model)
    librarian(*ragged_job.extract(server.url + "model/", tmp_path / "store"))
    run = last_run(tmp_path / "store")
    assert differing_files(tmp_path / "store/model", store / "model") == []
    written = {path.name: path.stat().st_size for path in (store / "model").iterdir()}
    with safe_open(store / "model/model.safetensors", "np") as file:
        tensor_bytes = sum(2 * np.prod(file.get_slice(name).get_shape()) for name in file.keys())
    small = sum(size for name, size in written.items()
                if name not in ("librarian.json", "model.safetensors"))
    assert run["skeleton_bytes"] == small + tensor_bytes
    assert run["needed_bytes"] <= run["fetched_bytes"] <= 1.02 * run["needed_bytes"]
    asked = [record.path for record in server.requests if record.path.endswith("/merges.txt")]
    assert len(asked) == 1
    before = len(server.requests)
    librarian(*ragged_job.extract(server.url + "model/", tmp_path / "store"))  # Already complete.
    assert last_run(tmp_path / "store")["skeleton_bytes"] == 0
    assert not any("tokenizer" in record.path for record in server.requests[before:])


def test_verify_and_inspect_tell_of_it(store, librarian):
    assert verified(librarian, store)["skeleton"] == "complete"
    assert "model/, 7 files" in librarian("inspect", store).stdout
    event = json.loads(librarian("inspect", store, "--json").stdout)
    assert {"path": "merges.txt", "size": 4} in event["skeleton"]


def test_without_it_nothing_is_missing(model, store, ragged_job, librarian, tmp_path):
    librarian(*ragged_job.extract(model / "model", tmp_path / "store", "--skeleton", "no"))
    assert not (tmp_path / "store/model").exists()
    assert verified(librarian, tmp_path / "store")["skeleton"] == "not asked for"
    assert "equal" in librarian("diff", tmp_path / "store", store).stdout
    # Asked for later, it comes without the parts being done again.
    librarian(*ragged_job.extract(model / "model", tmp_path / "store"))
    assert last_run(tmp_path / "store")["parts_done_here"] == 0
    assert differing_files(tmp_path / "store/model", store / "model") == []
    assert verified(librarian, tmp_path / "store")["skeleton"] == "complete"


@pytest.fixture
def copy(store, tmp_path):
    shutil.copytree(store, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("name", ["librarian.json", "model.safetensors", "config.json", "merges.txt"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_damage_is_named(harm, name, copy, librarian):
    path = copy / "model" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(data if harm == "flip" else data[:-1])
    report = verified(librarian, copy, DAMAGED)
    if (harm, name) == ("remove", "librarian.json"):
        assert (report["state"], report["skeleton"]) == ("incomplete", "missing")
        return
    assert (report["state"], report["skeleton"]) == ("damaged", "damaged")
    assert [problem["path"] for problem in report["problems"]] == ["model/" + name]


def test_a_lost_one_comes_again(copy, store, model, ragged_job, librarian):
    (copy / "model/librarian.json").unlink()
    (copy / "model/merges.txt").unlink()
    (copy / "model/tokenizer.model").write_text("of a model that had one")
    (copy / "model/notes.txt").write_text("of the user")
    librarian(*ragged_job.extract(model / "model", copy))
    assert (copy / "model/notes.txt").read_text() == "of the user"
    (copy / "model/notes.txt").unlink()
    assert differing_files(copy, store) == []


def test_another_jobs_is_damage(copy, model, ragged_job, librarian, tmp_path):
    librarian(*ragged_job.extract(model / "model", tmp_path / "other", part_tokens=60))
    shutil.copy(tmp_path / "other/model/librarian.json", copy / "model/librarian.json")
    done = librarian(*ragged_job.extract(model / "model", copy), exit_code=DAMAGED)
    assert "model/librarian.json: belongs to another job" in done.stderr
    assert verified(librarian, copy, DAMAGED)["skeleton"] == "damaged"


def test_what_the_origin_refuses_is_left_out_with_a_warning(model, ragged_job, librarian, serve,
                                                            tmp_path):
    server = serve(model, faults=[Fault(status(403), path="*/" + name, times=ALWAYS)
                                  for name in ("merges.txt", "tokenizer.model")])
    done = librarian(*ragged_job.extract(server.url + "model/", tmp_path / "store"))
    assert "does without merges.txt, tokenizer.model" in done.stderr
    assert not (tmp_path / "store/model/merges.txt").exists()
    assert verified(librarian, tmp_path / "store")["state"] == "complete"


def test_a_file_too_large_for_a_tokenizer_is_refused(model, ragged_job, refused, tmp_path):
    shutil.copytree(model / "model", tmp_path / "model")
    with open(tmp_path / "model/tokenizer.json", "wb") as file:
        file.truncate((64 << 20) + 1)
    refused(*ragged_job.extract(tmp_path / "model", tmp_path / "store"), exit_code=BAD_INPUT,
            names=["tokenizer.json", "--skeleton no"])


# Tokens and the model's tokenizer.


@pytest.fixture
def tokens(tmp_path):
    """tokens(**metadata) -> a token file."""

    def write(**metadata):
        path = tmp_path / "tokens.safetensors"
        save_file(token_arrays([[1, 2, 3], [4, 5]]), path, {"librarian_tokens": "1"} | metadata)
        return path

    return write


def with_template_file(folder):
    (folder / "chat_template.jinja").write_text("another one")


def with_template_list(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": [
        {"name": "tool_use", "template": "x"}, {"name": "default", "template": "another one"}]}))


def without_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize("command", ["plan", "extract"])
def test_tokens_of_another_tokenizer_are_refused(command, model, tokens, refused, tmp_path):
    out = ["--out", tmp_path / "store"] if command == "extract" else []
    path = tokens(tokenizer_sha256="0" * 64)
    refused(command, model / "model", "--tokens", path, *out, exit_code=BAD_INPUT,
            names=[path, "another tokenizer", "tokenizer.json"])
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("tokenizer, template, change, warns", [
    (TOKENIZER_FILES["tokenizer.json"], TEMPLATE, None, False),
    (TOKENIZER_FILES["tokenizer.json"], "mine", None, True),
    (TOKENIZER_FILES["tokenizer.json"], TEMPLATE, with_template_file, True),
    (TOKENIZER_FILES["tokenizer.json"], "another one", with_template_file, False),
    (TOKENIZER_FILES["tokenizer.json"], "another one", with_template_list, False),
    (TOKENIZER_FILES["tokenizer.json"], None, None, False),
    ("of no model", TEMPLATE, without_tokenizer, False),
], ids=["the model's", "own template", "a template file wins", "of the template file",
        "of the default template", "no template", "a model without tokenizer"])
def test_tokens_of_another_template_are_worth_a_warning(tokenizer, template, change, warns, model,
                                                        tokens, librarian, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model / "model", folder)
    if change:
        change(folder)
    metadata = {"tokenizer_sha256": sha256(tokenizer)}
    if template is not None:
        metadata["chat_template_sha256"] = sha256(template)
    done = librarian("plan", folder, "--tokens", tokens(**metadata))
    assert ("another chat template" in done.stderr) == warns, done.stderr
