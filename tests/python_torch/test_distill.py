"""examples/distill: a student learns from a store; bad steps and kills do no harm."""

import os
import pathlib
import signal
import statistics
import subprocess
import sys
import types

import pytest
import torch

import nexus_librarian
from nexus_librarian import ActivationStore, collate_padded

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples"
BINARY = pathlib.Path(os.environ.get("LIBRARIAN_BIN", REPOSITORY / "build/release/cli/librarian"))
sys.path[:0] = [str(EXAMPLES / "distill"), str(EXAMPLES)]

import data  # noqa: E402  (needs the path above)
import losses  # noqa: E402
import progress  # noqa: E402
import recovery  # noqa: E402
import student  # noqa: E402
import train  # noqa: E402
from make_teacher import LlamaShape, write_checkpoint  # noqa: E402

RUN_SECONDS_MAX = 300
TEACHER = LlamaShape(hidden=48, layers=4, ffn=96, heads=4, kv_heads=2, vocab=272)
STEPS, SAVE_EVERY = 40, 8
SIZES = ["--width", "48", "--layers", "2", "--ffn", "96", "--batch-size", "3", "--accumulate", "2",
         "--threads", "1", "--lr", "8e-3", "--warmup", "5", "--log-every", "1",
         "--steps", str(STEPS), "--save-every", str(SAVE_EVERY)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Runs are compared to the last bit, so all have as many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """A teacher's folder."""
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    write_checkpoint(folder, TEACHER, file_count=1, seed=0)
    return folder


@pytest.fixture(scope="session")
def store(teacher, tmp_path_factory):
    """A store of five parts, of an English text: two layers, and the teacher's logits."""
    if not BINARY.is_file() and "LIBRARIAN_BIN" not in os.environ:
        pytest.skip(f"{BINARY} is not built")
    folder = tmp_path_factory.mktemp("store")
    tokens = folder / "tokens.safetensors"
    texts = sorted((EXAMPLES / "text").glob("*.txt"))
    subprocess.run([sys.executable, EXAMPLES / "tokenize_bytes.py", *texts, "--sample-bytes", "64",
                    "--out", tokens], check=True, timeout=RUN_SECONDS_MAX)
    done = subprocess.run([BINARY, "extract", teacher, "--tokens", tokens, "--capture",
                           "resid_post@[1,3],logits.topk(k=32)", "--part-tokens", "1024",
                           "--out", folder / "acts"],
                          capture_output=True, text=True, timeout=RUN_SECONDS_MAX)
    assert done.returncode == 0, done.stderr
    return folder / "acts"


def run(monkeypatch, *arguments):
    """train.py in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    return train.main()


def losses_of(out, name="loss"):
    """{step: loss of the last time it was taken}"""
    return {int(row["step"]): float(row[name]) for row in progress.read_losses(out / "losses.csv")
            if not row["event"]}


@pytest.fixture(scope="session")
def undisturbed(store, tmp_path_factory):
    """A run from beginning to end."""
    out = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(monkeypatch, store, "--out", out, *SIZES) == 0
    return out


def test_the_losses_fall_and_are_drawn(undisturbed):
    """Goal: the student learns the text and the teacher's layers; its first guess is uniform."""
    ce, hidden = losses_of(undisturbed, "ce"), losses_of(undisturbed, "hidden")
    assert list(ce) == list(range(1, STEPS + 1))
    assert 5.3 < ce[1] < 6.2  # ln(272) = 5.6
    assert ce[STEPS] < 0.6 * ce[1]
    assert hidden[STEPS] < 0.7 * hidden[1]
    image_of = pytest.importorskip("matplotlib.image")
    picture = image_of.imread(undisturbed / "losses.png")
    assert picture.shape[0] >= 400 and picture.shape[1] >= 600
    colours = picture[..., :3].max(-1) - picture[..., :3].min(-1)
    assert (colours > 0.3).sum() > 2000  # Curves; the frame, the grid and the words are grey.


SPIKE = 2 * SAVE_EVERY + 4


@pytest.fixture(scope="session")
def with_spike(store, tmp_path_factory):
    """A run with a spike from beginning to end."""
    out = tmp_path_factory.mktemp("with_spike")
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(monkeypatch, store, "--out", out, *SIZES,
                   "--inject-spike", SPIKE) == 0
    return out


def test_an_injected_spike_rolls_back_and_training_still_ends_lower(undisturbed, with_spike):
    rows = progress.read_losses(with_spike / "losses.csv")
    bad = [i for i, row in enumerate(rows) if row["event"] == "spike"]
    assert len(bad) == 1 and int(rows[bad[0]]["step"]) == SPIKE
    assert rows[: bad[0]] == progress.read_losses(undisturbed / "losses.csv")[: bad[0]]
    assert float(rows[bad[0]]["loss"]) > 100 * float(rows[bad[0] - 1]["loss"])
    # Done again from the best checkpoint on: the same data up to the bad batches, then what follows
    # them.
    before = rows[bad[0] - 3 : bad[0]]
    again = rows[bad[0] + 1 : bad[0] + 4]
    assert [row["batches"] for row in again] == [row["batches"] for row in before]
    assert again[0]["loss"] == before[0]["loss"]
    assert float(again[0]["lr"]) == pytest.approx(0.5 * float(before[0]["lr"]))
    place = int(rows[bad[0]]["batches"])
    assert [int(row["batches"]) for row in rows[bad[0] + 4 : bad[0] + 6]] == [place + 2, place + 4]
    assert int(again[0]["step"]) == 2 * SAVE_EVERY + 1
    after = losses_of(with_spike)
    assert sorted(after) == list(range(1, STEPS + 1))
    last = statistics.median(after[step] for step in range(STEPS - 4, STEPS + 1))
    assert last < statistics.median(after[step] for step in range(SPIKE - 5, SPIKE))
    assert last < 0.6 * after[1]
    assert all(loss < 2 * after[1] for loss in after.values())


def test_a_run_stopped_after_a_rollback_still_knows_what_to_skip(
        store, with_spike, tmp_path, monkeypatch):
    """Method: stopped two steps behind the rollback, where no checkpoint is due."""
    arguments = [store, "--out", tmp_path, *SIZES, "--inject-spike", SPIKE]
    take_step = train.Run.take_step

    def stop_in_time(self):
        if self.rollbacks and self.step == 2 * SAVE_EVERY + 2:
            raise KeyboardInterrupt
        take_step(self)

    with monkeypatch.context() as patched:
        patched.setattr(train.Run, "take_step", stop_in_time)
        assert run(monkeypatch, *arguments) == 130
    saved = recovery.Checkpoints.load(tmp_path / "last.pt", "cpu")
    assert (saved["step"], saved["rollbacks"]) == (2 * SAVE_EVERY, 1)
    assert run(monkeypatch, *arguments, "--resume") == 0
    assert progress.read_losses(tmp_path / "losses.csv") == \
        progress.read_losses(with_spike / "losses.csv")


def test_a_killed_run_goes_on_at_its_checkpoint_with_the_same_data(
        store, undisturbed, tmp_path, monkeypatch, capsys):
    """Method: kill -9 once a step behind a checkpoint was printed, while a worker has read further;
    then every later step must have the very losses of the run that nobody disturbed."""
    command = [sys.executable, EXAMPLES / "distill/train.py", store, "--out", tmp_path, *SIZES,
               "--workers", "1"]
    package = pathlib.Path(nexus_librarian.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(package)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment,
                               start_new_session=True)
    try:
        for line in process.stdout:
            if line.startswith(f"step {SAVE_EVERY + 3}/"):
                break
        else:
            pytest.fail("the run ended early")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with open(tmp_path / "losses.csv", "a") as file:
        file.write("4711,12,3.")  # A row that the kill cut off.
    assert run(monkeypatch, store, "--out", tmp_path, *SIZES) == 2
    assert "add --resume" in capsys.readouterr().err
    assert run(monkeypatch, store, "--out", tmp_path, *SIZES, "--lr", "1",
               "--resume") == 2
    assert "--lr" in capsys.readouterr().err
    assert run(monkeypatch, store, "--out", tmp_path, *SIZES,
               "--resume") == 0
    said = capsys.readouterr().out.splitlines()
    resumed_at = int(next(line for line in said if line.startswith("resumed")).split()[-1])
    assert resumed_at >= SAVE_EVERY and resumed_at % SAVE_EVERY == 0
    assert progress.read_losses(tmp_path / "losses.csv") == \
        progress.read_losses(undisturbed / "losses.csv")


def test_a_loss_that_stays_bad_ends_the_run(store, teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(losses, "cross_entropy", lambda logits, targets: logits.sum() * torch.nan)
    assert run(monkeypatch, store, "--out", tmp_path, "--teacher", teacher, *SIZES,
               "--max-rollbacks", 2) == 1
    message = capsys.readouterr().err
    assert "2 rollbacks did not help" in message and message.count("\n") == 1
    assert [row["event"] for row in progress.read_losses(tmp_path / "losses.csv")] == ["spike"] * 3


def test_the_student_learns_the_teachers_logits(store, tmp_path, monkeypatch):
    assert run(monkeypatch, store, "--out", tmp_path, *SIZES, "--ce-weight", 0,
               "--alpha-hidden", 0) == 0
    kl = losses_of(tmp_path, "kl")
    assert kl[STEPS] < 0.8 * kl[1]
    assert losses_of(tmp_path, "loss") == kl


def test_the_teachers_last_layer_through_its_own_head_has_no_kl(store):
    """Goal: rows of layers, of logits and of targets are those of the same tokens. Method: norm and
    head of the skeleton on the captured last layer; what remains is the teacher's bf16 rounding."""
    opened = ActivationStore(store)
    shape = student.StudentShape(TEACHER.vocab, TEACHER.hidden, 1, 4, 32)
    teacher = student.build(shape, [], 0, torch.device("cpu"), seed=0).student
    student.copy_from_teacher(teacher, store / "model", {"model_type": "llama"})
    batch = collate_padded([opened.sample(i) for i in range(6)])
    mask = losses.rows_with_target(batch)
    topk = {name: values[mask] for name, values in batch["logits.topk"].items()}
    rows = int(mask.sum())
    logits = teacher.logits(batch["blocks.3.resid_post"].float()[mask]).detach()
    assert abs(float(losses.topk_kl(logits, topk["ids"], topk["log_prob"]))) / rows < 1e-3
    other = torch.roll(logits, 1, dims=0)
    assert float(losses.topk_kl(other, topk["ids"], topk["log_prob"])) / rows > 0.01
    targets = batch["input_ids"].roll(-1, dims=1)[mask]
    assert float(losses.cross_entropy(logits, targets)) / rows == pytest.approx(
        -float(topk["gold_log_prob"].mean()), rel=1e-3)


def test_the_student_may_begin_with_the_teachers_embedding_norm_and_head(store):
    teacher = store / "model"
    tensors, begin = student.read_safetensors(teacher / "model.safetensors")
    shape = student.StudentShape(TEACHER.vocab, TEACHER.hidden, 1, 4, 32)
    config = {"model_type": "llama"}
    model = student.build(shape, [], 0, torch.device("cpu"), seed=0)
    untouched = model.student.blocks[0].qkv.weight.clone()
    student.copy_from_teacher(model.student, teacher, config)
    for parameter, name in [(model.student.embedding.weight, "model.embed_tokens.weight"),
                            (model.student.norm.weight, "model.norm.weight"),
                            (model.student.head.weight, "lm_head.weight")]:
        first, last = tensors[name][2]
        stored = (teacher / "model.safetensors").read_bytes()[begin + first : begin + last]
        assert parameter.detach().bfloat16().view(torch.int16).numpy().tobytes() == stored
    assert torch.equal(model.student.blocks[0].qkv.weight, untouched)
    wider = student.build(student.StudentShape(TEACHER.vocab, 64, 1, 4, 32), [], 0,
                          torch.device("cpu"), seed=0)
    with pytest.raises(ValueError, match="--width"):
        student.copy_from_teacher(wider.student, teacher, config)
    with pytest.raises(ValueError, match="gemma2"):
        student.copy_from_teacher(model.student, teacher, {"model_type": "gemma2"})


def test_anchors_pair_layers_of_equal_depth_unless_told(store):
    opened = ActivationStore(store)
    names = ["blocks.1.resid_post", "blocks.3.resid_post"]
    assert data.choose_anchors(opened, 4, 2, None, [3], 10.0) == {names[0]: (0, 1.0),
                                                                  names[1]: (1, 10.0)}
    assert data.choose_anchors(opened, 4, 1, None, [], 10.0) == {names[1]: (0, 1.0)}
    assert data.choose_anchors(opened, 4, 8, {1: 7}, [1], 4.0) == {names[0]: (7, 4.0)}
    for pairs, critical, message in [({2: 0}, [], "no resid_post of layer 2"),
                                     ({1: 2}, [], "no student layer 2"),
                                     (None, [2], "layer 2 is not an anchor")]:
        with pytest.raises(ValueError, match=message):
            data.choose_anchors(opened, 4, 2, pairs, critical, 10.0)


def test_a_variance_is_that_of_the_rows_that_are_anchored(store, monkeypatch):
    opened = ActivationStore(store)
    name = "blocks.3.resid_post"
    monkeypatch.setattr(data, "VARIANCE_SAMPLES", 10 * len(opened))
    all_rows, anchored = (torch.cat([opened.sample(i, [name])[name][first:]
                                     for i in range(len(opened))]).float() for first in (0, 5))
    measured = data.measure_variances(opened, [name], first=5)[name]
    assert measured == pytest.approx(float(anchored.var(0).mean()), rel=1e-5)
    assert measured != pytest.approx(float(all_rows.var(0).mean()), rel=1e-4)


def test_small_batches_give_the_gradient_of_one_large_batch(store):
    """Goal: accumulating weighs each row alike, though the batches hold unequally many."""
    opened = ActivationStore(store)
    name = "blocks.1.resid_post"
    samples = [opened.sample(i, [name]) for i in range(3)]
    samples[0] = {key: value[:7] for key, value in samples[0].items()}
    options = types.SimpleNamespace(ce_weight=1.0, kl_weight=1.0, alpha_hidden=0.5,
                                    skip_first_tokens=1)
    loss = losses.Losses({name: (0, 10.0)}, {name: 2.0}, options)
    shape = student.StudentShape(TEACHER.vocab, 16, 1, 2, 24)
    gradients, values = [], []
    for cut in ([samples], [samples[:1], samples[1:]]):
        model = student.build(shape, [name], TEACHER.hidden, torch.device("cpu"), seed=3)
        parts, tokens = train.add_gradients(model, loss, [collate_padded(part) for part in cut],
                                            torch.device("cpu"), False, 1.0)
        assert tokens == sum(len(sample["input_ids"]) for sample in samples)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        values.append(parts["loss"])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6)
