"""The pieces of examples/distill: rows and losses, the student, what a spike is, the schedule."""

import pathlib
import sys
import types

import pytest
import torch

from nexus_librarian import collate_padded

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples/distill"))

import losses  # noqa: E402  (needs the path above)
import recovery  # noqa: E402
import student  # noqa: E402
import train  # noqa: E402


def batch_of_two():
    """Samples of 4 and 2 tokens; tokens 2 and 3 of the first and 1 of the second count."""
    samples = [{"input_ids": torch.tensor([5, 6, 7, 8]), "h": torch.arange(8.0).view(4, 2),
                "loss_mask": torch.tensor([False, False, True, True])},
               {"input_ids": torch.tensor([9, 4]), "h": torch.arange(20.0, 24.0).view(2, 2),
                "loss_mask": torch.tensor([False, True])}]
    return samples, collate_padded(samples)


def test_rows_predict_the_next_token_of_their_sample_that_counts():
    _, batch = batch_of_two()
    assert losses.rows_with_target(batch).tolist() == [[False, True, True, False],
                                                       [True, False, False, False]]
    del batch["loss_mask"]
    assert losses.rows_with_target(batch).tolist() == [[True, True, True, False],
                                                       [True, False, False, False]]


def test_rows_of_a_capture_meet_the_students_rows():
    """Goal: a capture with all rows, and the same one keeping some, give the same pairs."""
    samples, whole = batch_of_two()
    kept = [[1, 2], [1]]
    for sample, rows in zip(samples, kept):
        sample["h.rows"], sample["h"] = torch.tensor(rows), sample["h"][rows]
    some = collate_padded(samples)
    mask, keep = losses.select_rows(some, "h", first=0)
    assert torch.equal(whole["h"][mask], some["h"][keep])
    assert whole["h"][mask].tolist() == [[2, 3], [4, 5], [22, 23]]
    mask, keep = losses.select_rows(some, "h", first=2)
    assert whole["h"][mask].tolist() == some["h"][keep].tolist() == [[4, 5]]
    mask, keep = losses.select_rows(whole, "h", first=1)
    assert whole["h"][keep].tolist() == [[2, 3], [4, 5], [6, 7], [22, 23]]


def test_kl_counts_the_mass_outside_the_top_k():
    """Method: the formula over all tokens, with the k smallest ones joined by hand, in float64."""
    generator = torch.Generator().manual_seed(1)
    teacher, logits = (torch.randn(6, 11, generator=generator) for _ in range(2))
    p, q = teacher.double().softmax(-1), logits.double().softmax(-1)
    log_prob, ids = p.log().topk(4)
    joined = [torch.cat([x.gather(-1, ids), 1 - x.gather(-1, ids).sum(-1, keepdim=True)], -1)
              for x in (p, q)]
    want = (joined[0] * (joined[0] / joined[1]).log()).sum()
    got = losses.topk_kl(logits, ids.int(), log_prob.half())
    assert float(got) == pytest.approx(float(want), rel=2e-3)
    # The teacher itself has nothing to learn; all tokens kept leaves no mass outside.
    assert abs(float(losses.topk_kl(teacher, ids.int(), log_prob.float()))) < 1e-5
    log_prob, ids = p.log().topk(11)
    want = (p * (p / q).log()).sum()
    logits.requires_grad_()
    got = losses.topk_kl(logits, ids.int(), log_prob.float())
    got.backward()
    assert float(got.detach()) == pytest.approx(float(want), rel=1e-3)
    assert torch.allclose(logits.grad, (q - p).float(), atol=1e-3)


def test_the_student_sees_no_later_token():
    shape = student.StudentShape(vocab=50, width=16, layers=2, heads=2, ffn=24)
    model = student.build(shape, [], 0, torch.device("cpu"), seed=0).student
    ids = torch.arange(12)[None]
    changed = ids.clone()
    changed[0, 7] = 40
    one, other = (model(x)[-1][0] for x in (ids, changed))
    assert torch.equal(one[:7], other[:7])
    assert not torch.equal(one[8], other[8])  # Later ones do see it.


def test_initial_weights_depend_on_seed_and_name_only():
    device = torch.device("cpu")
    small, large = (student.build(student.StudentShape(50, 16, layers, 2, 24), [], 0, device, 4)
                    for layers in (1, 3))
    assert torch.equal(small.student.blocks[0].qkv.weight, large.student.blocks[0].qkv.weight)
    other = student.build(student.StudentShape(50, 16, 1, 2, 24), [], 0, device, seed=5)
    assert not torch.equal(small.student.head.weight, other.student.head.weight)
    assert float(large.student.head.weight.std()) == pytest.approx(student.INITIAL_STD, rel=0.1)


def test_a_spike_is_a_loss_far_above_the_running_median():
    detector = recovery.SpikeDetector(factor=3.0)
    assert detector.why_bad(1e9, 1.0) is None  # Nothing to compare with yet.
    assert "nan" in detector.why_bad(float("nan"), 1.0)
    assert "inf" in detector.why_bad(1.0, float("inf"))
    for loss in [2.0, 2.1, 1.9, 2.0, 2.0]:
        detector.accept(loss)
    assert detector.why_bad(5.9, 1.0) is None
    assert "6.1" in detector.why_bad(6.1, 1.0)
    for loss in 30 * [2.0] + recovery.HISTORY_STEPS * [0.5]:
        detector.accept(loss)
    assert detector.why_bad(1.9, 1.0)  # The early steps are forgotten, though they were more.


def test_the_learning_rate_rises_and_falls():
    options = types.SimpleNamespace(lr=2.0, warmup=4, steps=104)
    rates = [train.learning_rate(step, options) for step in range(105)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0] and rates[4] == 2.0
    assert all(a > b for a, b in zip(rates[4:], rates[5:]))
    assert rates[54] == pytest.approx(1.1) and rates[104] == pytest.approx(0.2)


@pytest.mark.parametrize("device, wanted", [("cuda", "PagedAdamW8bit"), ("cpu", "AdamW")])
def test_a_gpu_gets_8_bit_states_where_bitsandbytes_is(monkeypatch, device, wanted):
    """Method: a module in bitsandbytes' place; that the real one trains is not shown here."""
    class PagedAdamW8bit(torch.optim.AdamW):
        pass

    for name in ("bitsandbytes", "bitsandbytes.optim"):
        module = types.ModuleType(name)
        module.PagedAdamW8bit, module.__spec__ = PagedAdamW8bit, types.SimpleNamespace()
        monkeypatch.setitem(sys.modules, name, module)
    options = types.SimpleNamespace(weight_decay=0.1, lr=1e-3)
    shape = student.StudentShape(50, 16, 1, 2, 24)
    model = student.build(shape, [], 0, torch.device("cpu"), seed=0)
    optimizer = train.make_optimizer(model, torch.device(device), options)
    assert type(optimizer).__name__ == wanted
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))
    assert all(p.dim() == 1 for p in plain["params"])
