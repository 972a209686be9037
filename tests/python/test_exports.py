"""librarian export: its files by their schemas ("schema only"), resuming, and what it refuses.

The trainers' own code reads the same files in test_trainers.py, where it is installed.
"""

import errno
import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest

from export_support import (
    HIDDEN, NAN_TOKEN, SAMPLE_LENGTHS, as_f32, draft_tokens, export_main, extract_draft_store,
    folder_bytes, model_with_nan, read_hidden_states, read_torch_file)
from support import read_safetensors

nexus_librarian = pytest.importorskip("nexus_librarian")
from nexus_librarian import ActivationStore  # noqa: E402
from nexus_librarian.export import output as output_module  # noqa: E402
from nexus_librarian.export.values import fp8_bits  # noqa: E402

USAGE, BAD_INPUT, FOREIGN, DOES_NOT_FIT, DAMAGED, INTERRUPTED = 2, 3, 4, 5, 7, 130


@pytest.fixture(scope="module")
def store(librarian, tmp_path_factory):
    """Path of a store with two layers, both final states and a loss mask; must not be changed."""
    folder = tmp_path_factory.mktemp("exports")
    return extract_draft_store(librarian, folder / "store", draft_tokens(folder / "t.safetensors"))


def numpy_samples(path):
    store = ActivationStore(path, framework="numpy")
    return [store.sample(sample) for sample in range(len(store))]


@pytest.fixture
def needs_arrow():
    pytest.importorskip("pyarrow")


def read_arrow(folder):
    """Columns of a save_to_disk folder, by the schema alone."""
    import pyarrow
    state = json.loads((folder / "state.json").read_text())
    columns = {}
    for entry in state["_data_files"]:
        with pyarrow.memory_map(str(folder / entry["filename"])) as file:
            for name, values in pyarrow.ipc.open_stream(file).read_all().to_pydict().items():
                columns.setdefault(name, []).extend(values)
    assert set(columns) == set(json.loads((folder / "dataset_info.json").read_text())["features"])
    return columns


def test_speculators_records_hold_layers_then_the_state_before_the_norm(store, tmp_path, needs_arrow):
    """Goal: slots in the order of the layers, last the state before the norm; ids and masks of the
    same sample in the file and in the row of the same number.

    Method: schema only, against the store's own reader.
    """
    assert export_main(store, "--to", "speculators", "--out", tmp_path / "out") == 0
    samples, rows = numpy_samples(store), read_arrow(tmp_path / "out")
    assert rows["seq_len"] == SAMPLE_LENGTHS
    for record, sample in enumerate(samples):
        hidden, ids = read_hidden_states(tmp_path / "out", record)
        for slot, capture in enumerate([*HIDDEN, "final.pre_norm"]):
            np.testing.assert_array_equal(hidden[:, slot], as_f32(sample[capture]))
        assert ids.tolist() == sample["input_ids"].tolist() == rows["input_ids"][record]
        assert rows["loss_mask"][record] == sample["loss_mask"].tolist()
    assert len(rows["seq_len"]) == len(samples)


def test_token_frequencies_count_the_tokens_that_are_trained_on(store, tmp_path, needs_arrow):
    assert export_main(store, "--to", "speculators", "--out", tmp_path / "out") == 0
    ids = np.concatenate([s["input_ids"][s["loss_mask"]] for s in numpy_samples(store)])
    expected = {int(token): int((ids == token).sum()) for token in np.unique(ids)}
    assert read_torch_file(tmp_path / "out/token_freq.pt") == expected


def fp8_values():
    """Value of each of the 256 codes of float8_e4m3fn, from the definition of its fields."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6,
                      (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    values[(codes & 127) == 127] = np.nan
    return np.where(codes >= 128, -values, values)


def test_fp8_codes_are_the_nearest_ones_and_ties_go_to_even():
    """Method: every code's own value, every middle of two neighbours and both sides of it, against the
    table of all codes."""
    table = fp8_values()
    positive = table[:127]  # 0 .. 448
    middles = (positive[:-1] + positive[1:]) / 2
    even = np.arange(126) + (np.arange(126) & 1)
    assert fp8_bits(positive.astype(np.float32)).tolist() == list(range(127))
    assert fp8_bits(-positive.astype(np.float32)).tolist() == list(range(128, 255))
    assert fp8_bits(middles.astype(np.float32)).tolist() == even.tolist()
    below, above = (np.nextafter(middles.astype(np.float32), np.float32(end)) for end in (0, 1e9))
    assert fp8_bits(below).tolist() == list(range(126))
    assert fp8_bits(above).tolist() == list(range(1, 127))
    assert (fp8_bits(np.array([np.nan, np.inf, 480, -np.inf], np.float32)) & 127).tolist() == [127] * 4


def test_fp8_records_have_one_scale_per_token_over_all_layers(store, tmp_path, needs_arrow):
    """Goal: value = code * scale within half a step, scale = amax / 448 of the token's every layer."""
    assert export_main(store, "--to", "speculators", "--fp8", "--out", tmp_path / "fp8") == 0
    table = fp8_values()
    for record, sample in enumerate(numpy_samples(store)):
        data = (tmp_path / f"fp8/hidden_states/hs_{record}.safetensors").read_bytes()
        (header_bytes,) = struct.unpack_from("<Q", data)
        header, data = json.loads(data[8 : 8 + header_bytes]), data[8 + header_bytes :]
        assert header["hidden_states"]["dtype"] == "F8_E4M3"
        arrays = {name: np.frombuffer(data[slice(*header[name]["data_offsets"])], kind)
                  .reshape(header[name]["shape"]) for name, kind in
                  [("hidden_states", "u1"), ("hidden_states_scales", "<f4"), ("token_ids", "<i8")]}
        truth = np.stack([as_f32(sample[name]) for name in [*HIDDEN, "final.pre_norm"]], axis=1)
        scales = np.abs(truth).max(axis=(1, 2), keepdims=True) / np.float32(448)
        np.testing.assert_array_equal(arrays["hidden_states_scales"], scales)
        error = np.abs(table[arrays["hidden_states"]] - truth / scales)
        assert (error <= np.maximum(np.abs(truth / scales) / 16, 2.0**-10) * (1 + 1e-6)).all()


def test_specforge_records_hold_the_state_after_the_norm(store, tmp_path):
    """Method: schema only, against the store's own reader."""
    assert export_main(store, "--to", "specforge", "--out", tmp_path / "out") == 0
    for record, sample in enumerate(numpy_samples(store)):
        got = read_torch_file(tmp_path / f"out/rows_0-2000/data_{record}.ckpt")
        assert set(got) == {"input_ids", "loss_mask", "hidden_state", "aux_hidden_state"}
        length = SAMPLE_LENGTHS[record]
        assert got["hidden_state"].shape == (1, length, 64)
        assert got["aux_hidden_state"].shape == (1, length, 128)
        assert got["input_ids"].dtype == got["loss_mask"].dtype == np.int64
        np.testing.assert_array_equal(as_f32(got["hidden_state"][0]),
                                      as_f32(sample["final.post_norm"]))
        np.testing.assert_array_equal(
            as_f32(got["aux_hidden_state"][0]),
            np.concatenate([as_f32(sample[capture]) for capture in HIDDEN], axis=1))
        assert got["input_ids"].tolist() == sample["input_ids"].tolist()
        assert got["loss_mask"].tolist() == sample["loss_mask"].tolist()


def test_shards_joined_are_the_store(store, tmp_path):
    """Goal: every sample's rows, ids, mask and number once, in order, in files as large as told."""
    limit = 40_000
    assert export_main(store, "--to", "safetensors", "--shard-size", limit,
                       "--out", tmp_path / "out") == 0
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert len(index["shards"]) > 2 and index["samples"] == len(SAMPLE_LENGTHS)
    samples, seen = numpy_samples(store), []
    for shard in index["shards"]:
        assert shard["bytes"] <= limit + 4096  # The header.
        tensors = read_safetensors(tmp_path / "out" / shard["file"])
        for place, sample in enumerate(tensors["sample"].tolist()):
            seen.append(sample)
            rows = slice(*tensors["offsets"][place : place + 2])
            for capture in index["captures"]:
                np.testing.assert_array_equal(
                    tensors[capture][rows], as_f32(samples[sample][capture])
                    if capture.startswith(("blocks", "final")) else samples[sample][capture])
    assert seen == list(range(len(samples)))
    assert index["captures"]["final.pre_norm"] == {"dtype": "BF16", "width": 64}


@pytest.fixture(params=["speculators", "specforge", "safetensors"])
def target(request):
    """Arguments of an export of each kind."""
    if request.param == "speculators":
        pytest.importorskip("pyarrow")
    return ["--to", request.param,
            *(["--shard-size", 40_000] if request.param == "safetensors" else [])]


def test_a_stopped_export_continues_and_gives_the_same_bytes(store, tmp_path, target, monkeypatch):
    """Goal: no half file after a stop at any file; what was there is not written again.

    Method: the rename that would make file n whole is a signal instead, for every n.
    """
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert export_main(store, *target, "--out", whole) == 0
    rename, stops = os.rename, []

    def stop(old, new):
        if new not in stops:
            stops.append(new)
            raise KeyboardInterrupt
        rename(old, new)

    monkeypatch.setattr(output_module.os, "rename", stop)
    while (code := export_main(store, *target, "--out", out)) == INTERRUPTED:
        assert not [name for name in folder_bytes(out) if name.endswith(".tmp")]
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
        assert len(stops) < 100
    assert code == 0 and len(stops) > 3
    records = [path for path in before if path.name.startswith(("hs_", "data_", "shard-"))
               and path.suffix != ".arrow"]
    assert records and all(path.stat().st_mtime_ns == before[path] for path in records)
    assert folder_bytes(out) == folder_bytes(whole)


def test_other_options_or_another_store_are_refused_by_name(store, librarian, tmp_path, target,
                                                            capsys):
    out = tmp_path / "out"
    assert export_main(store, *target, "--out", out) == 0
    files = folder_bytes(out)
    other = extract_draft_store(librarian, tmp_path / "other",
                                draft_tokens(tmp_path / "t.safetensors", nan_samples=[2]))
    for arguments, field in [((store, "--num-samples", 3), "samples"), ((other,), "stores"),
                             ((store, "--capture", HIDDEN[0]), "captures")]:
        capsys.readouterr()
        assert export_main(*arguments, *target, "--out", out) == FOREIGN
        said = capsys.readouterr().err
        assert field in said and str(out) in said
    assert folder_bytes(out) == files


def test_a_folder_of_somebody_else_or_in_use_is_refused(store, tmp_path, target):
    foreign, busy = tmp_path / "foreign", tmp_path / "busy"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    assert export_main(store, *target, "--out", foreign) == FOREIGN
    assert folder_bytes(foreign) == {"notes.txt": b"mine"}
    busy.mkdir()
    held = os.open(busy, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert export_main(store, *target, "--out", busy) == FOREIGN
    os.close(held)
    assert export_main(store, *target, "--out", busy) == 0


@pytest.mark.parametrize("to,missing", [("speculators", "final.pre_norm"),
                                        ("specforge", "final.post_norm")])
def test_the_final_state_that_a_trainer_wants_must_be_there(to, missing, librarian, tmp_path, capsys):
    """Goal: the other final state is never taken for it; the sentence says what to capture."""
    if to == "speculators":
        pytest.importorskip("pyarrow")
    there = {"final.pre_norm": "final.post_norm", "final.post_norm": "final.pre_norm"}[missing]
    tokens = draft_tokens(tmp_path / "t.safetensors")
    folder = extract_draft_store(librarian, tmp_path / "store", tokens,
                                 captures=f"resid_post@[0,1],{there}")
    shutil.rmtree(folder / "model", ignore_errors=True)  # Its norm would make the one of the other.
    assert export_main(folder, "--to", to, "--out", tmp_path / "out") == BAD_INPUT
    assert f"--capture {missing}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_samples_with_nan_are_refused_or_left_out_and_listed(librarian, tmp_path, target, capsys):
    """Goal: no NaN reaches a trainer; the records after one that is left out keep their own ids.

    Method: samples 3 and 9 hold a token whose embedding is NaN.
    """
    bad = [3, 9]
    folder = extract_draft_store(
        librarian, tmp_path / "store", draft_tokens(tmp_path / "t.safetensors", nan_samples=bad),
        "--allow-nonfinite", model=model_with_nan(tmp_path / "model"))
    out = tmp_path / "out"
    assert export_main(folder, *target, "--out", out) == BAD_INPUT
    assert "sample 3" in capsys.readouterr().err
    assert export_main(folder, *target, "--skip-nonfinite", "--out", out) == 0
    manifest = json.loads((out / "export.json").read_text())
    assert [entry["sample"] for entry in manifest["skipped"]] == bad and manifest["complete"]
    kept = [sample["input_ids"].tolist() for number, sample in enumerate(numpy_samples(folder))
            if number not in bad]
    assert exported_ids(out, target[1]) == kept
    assert not any(NAN_TOKEN in ids for ids in kept)


def exported_ids(out, to):
    """Token ids of every record, in order."""
    if to == "speculators":
        rows = read_arrow(out)["input_ids"]
        assert rows == [read_hidden_states(out, record)[1].tolist() for record in range(len(rows))]
        return rows
    if to == "specforge":
        files = sorted(out.rglob("*.ckpt"), key=lambda path: int(path.stem.removeprefix("data_")))
        return [read_torch_file(path)["input_ids"].tolist() for path in files]
    ids = []
    for shard in json.loads((out / "index.json").read_text())["shards"]:
        tensors = read_safetensors(out / shard["file"])
        ids += [part.tolist() for part in np.split(tensors["input_ids"], tensors["offsets"][1:-1])]
    return ids


def test_a_record_of_other_tokens_is_found_when_an_export_continues(store, tmp_path, target, capsys):
    """Goal: files that somebody moved about are not taken for those of their number."""
    out = tmp_path / "out"
    assert export_main(store, *target, "--out", out) == 0
    files = {"speculators": "hidden_states/hs_{}.safetensors",
             "specforge": "rows_0-2000/data_{}.ckpt", "safetensors": "shard-0000{}.safetensors"}
    name = files[target[1]]
    (out / name.format(2)).unlink()
    shutil.copy(out / name.format(0), out / name.format(1))
    manifest = json.loads((out / "export.json").read_text())
    (out / "export.json").write_text(json.dumps({**manifest, "complete": False}))
    assert export_main(store, *target, "--out", out) == DAMAGED
    assert name.format(1) in capsys.readouterr().err


def test_a_damaged_or_incomplete_store_is_no_source(store, tmp_path, target, capsys):
    damaged, incomplete = (shutil.copytree(store, tmp_path / name) for name in "ab")
    shard = next(damaged.glob("part-00000/blocks.1.resid_post/c/0/0"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert export_main(damaged, *target, "--out", tmp_path / "out") == DAMAGED
    assert "blocks.1.resid_post" in capsys.readouterr().err
    shutil.rmtree(incomplete / "part-00001")
    assert export_main(incomplete, *target, "--out", tmp_path / "out2") == DAMAGED
    assert "parts are missing" in capsys.readouterr().err
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize("arguments", [
    ["--to", "specforge", "--fp8"], ["--to", "speculators", "--shard-size", "1GiB"], ["--to", "hdf5"],
    ["--to", "safetensors", "--num-samples", "0"], ["--to", "safetensors", "--shard-size", "much"], []])
def test_wrong_options_are_usage_errors_of_one_line(store, tmp_path, arguments, capsys):
    assert export_main(store, *arguments, "--out", tmp_path / "out") == USAGE
    said = capsys.readouterr().err
    assert said.startswith("librarian: ") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_program_hands_over_to_python_and_a_signal_ends_it_resumably(
        store, librarian_binary, tmp_path):
    """Goal: `librarian export` is this export; SIGTERM gives 143 and one line, and no half file.

    Method: the manifest is a FIFO, so the process is known to be inside the export when the test's end
    of it opens, and stays there until the signal.
    """
    environment = {**os.environ, "LIBRARIAN_PYTHON": sys.executable,
                   "PYTHONPATH": os.path.dirname(os.path.dirname(nexus_librarian.__file__))}
    command = [librarian_binary, "export", store, "--to", "safetensors", "--out"]
    done = subprocess.run([*command, tmp_path / "out"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "10 samples" in done.stdout, done.stderr
    (tmp_path / "stopped").mkdir()
    os.mkfifo(tmp_path / "stopped/export.json")
    with subprocess.Popen([*command, tmp_path / "stopped"], env=environment, text=True,
                          stderr=subprocess.PIPE) as process:
        with open(tmp_path / "stopped/export.json", "w"):
            process.send_signal(signal.SIGTERM)
            said = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert said == "librarian: stopped by a signal; the same command continues\n"
    assert os.listdir(tmp_path / "stopped") == ["export.json"]


def test_groups_become_one_tensor_for_each_member(librarian, tmp_path):
    """Goal: logits.topk in shards, its NaN at each sample's last token not taken for damage."""
    folder = extract_draft_store(
        librarian, tmp_path / "store", draft_tokens(tmp_path / "t.safetensors"),
        captures="resid_post@0,logits.topk(k=4)")
    assert export_main(folder, "--to", "safetensors", "--out", tmp_path / "out") == 0
    tensors = read_safetensors(tmp_path / "out/shard-00000.safetensors")
    for place, sample in enumerate(numpy_samples(folder)):
        rows = slice(*tensors["offsets"][place : place + 2])
        for member, values in sample["logits.topk"].items():
            np.testing.assert_array_equal(tensors[f"logits.topk.{member}"][rows], values)
        assert np.isnan(tensors["logits.topk.gold_log_prob"][rows][-1])


def keep_every_third_row(monkeypatch, capture):
    """Makes a store's parts say that a capture keeps the rows 0, 3, 6, ... only."""
    from nexus_librarian.store import Part
    info = Part.info
    monkeypatch.setattr(Part, "info", lambda self, array: info(self, array)._replace(
        rows="tokens/rows_loss" if array == capture else None))
    monkeypatch.setattr(Part, "kept", lambda self, name: np.arange(
        0, self.offsets[-1], 3) if name == capture else None)


def test_a_capture_of_some_tokens_says_which_in_shards(store, tmp_path, monkeypatch):
    """Goal: `<capture>.rows` are rows of the shard's tokens, for shards of several samples and parts.

    Method: the store's reader is told that a capture keeps every third row, so that no program that
    writes such stores is needed.
    """
    partial, whole = HIDDEN
    keep_every_third_row(monkeypatch, partial)
    samples = numpy_samples(store)
    assert export_main(store, "--to", "safetensors", "--shard-size", 40_000,
                       "--out", tmp_path / "out") == 0
    seen = 0
    for shard in json.loads((tmp_path / "out/index.json").read_text())["shards"]:
        tensors = read_safetensors(tmp_path / "out" / shard["file"])
        mine = [samples[sample] for sample in tensors["sample"]]
        np.testing.assert_array_equal(
            tensors[partial], np.concatenate([as_f32(sample[partial]) for sample in mine]))
        np.testing.assert_array_equal(tensors[f"{partial}.rows"], np.concatenate(
            [sample[f"{partial}.rows"] + begin for sample, begin in zip(mine, tensors["offsets"])]))
        assert len(tensors[whole]) == len(tensors["input_ids"]) == tensors["offsets"][-1]
        seen += len(tensors[partial])
    assert 0 < seen < sum(SAMPLE_LENGTHS)


@pytest.mark.parametrize("to,partial", [("speculators", HIDDEN[1]), ("specforge", "final.post_norm")])
def test_a_trainer_is_never_given_some_tokens_for_all(store, tmp_path, monkeypatch, to, partial, capsys):
    if to == "speculators":
        pytest.importorskip("pyarrow")
    keep_every_third_row(monkeypatch, partial)
    assert export_main(store, "--to", to, "--out", tmp_path / "out") == BAD_INPUT
    said = capsys.readouterr().err
    assert partial in said and "positions=all" in said
    assert not (tmp_path / "out").exists()


def test_a_full_disk_ends_with_its_own_exit_code_and_is_resumable(
        store, tmp_path, target, monkeypatch, capsys):
    """Method: fdatasync of the third file fails as on a full disk; then there is room."""
    calls, sync = [], os.fdatasync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(output_module.os, "fdatasync", full)
    assert export_main(store, *target, "--out", tmp_path / "out") == DOES_NOT_FIT
    assert os.strerror(errno.ENOSPC) in capsys.readouterr().err
    assert export_main(store, *target, "--out", tmp_path / "out") == 0


def test_files_that_cannot_fit_are_refused_before_the_first(store, tmp_path, target, monkeypatch):
    monkeypatch.setattr(output_module.os, "statvfs", lambda _: os.statvfs_result(
        (4096, 4096, 9, 9, 9, 0, 0, 0, 0, 255)))
    assert export_main(store, *target, "--out", tmp_path / "out") == DOES_NOT_FIT
    assert set(folder_bytes(tmp_path / "out")) == {"export.json"}
