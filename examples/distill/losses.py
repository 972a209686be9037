"""The losses: activation anchoring, cross entropy on the tokens, KL to the teacher's top-k logits.

Each is a sum over rows, and is divided by the rows of all the batches of a step, so that
accumulating over small batches gives what one large batch would.
"""

import torch
import torch.nn.functional as F

TOPK = "logits.topk"
TAIL_MIN = 1e-6  # log_prob is float16: mass below that is rounding.
LOG_PROB_MIN = -100.0  # A teacher may rule tokens out: -inf times a probability of 0 would be NaN.


def select_rows(batch, capture, first=0):
    """The rows of a capture in a padded batch, from each sample's token number `first` on.

    @return  (mask bool [B, T], keep bool): hidden[mask] are the student's rows and values[keep] the
             teacher's, in the same order. Both are the same mask where the capture has all rows.
    """
    tokens = batch["input_ids"].shape[1]
    rows = batch.get(capture + ".rows")
    if rows is None:
        positions = torch.arange(tokens, device=batch["input_ids"].device)
        mask = batch["attention_mask"] & (positions >= first)
        return mask, mask
    keep = rows >= first  # Beyond a sample's rows stands -1.
    mask = torch.zeros_like(batch["attention_mask"])
    sample, _ = keep.nonzero(as_tuple=True)
    mask[sample, rows[keep]] = True
    return mask, keep


def rows_with_target(batch):
    """bool [B, T]: row t is true if token t+1 is of the same sample and counts (loss_mask)."""
    counts = batch["attention_mask"] & batch.get("loss_mask", batch["attention_mask"])
    mask = torch.zeros_like(counts)
    mask[:, :-1] = counts[:, 1:]
    return mask


def anchoring(projected, teacher, variance):
    """Squared error of rows [n, width], in units of the teacher's variance; summed over the rows.

    Per row 1.0 is what always answering with the teacher's mean would cost, 0 is a perfect copy.
    """
    difference = projected.float() - teacher.float()
    return difference.pow(2).mean(-1).sum() / variance


def cross_entropy(logits, targets):
    """Sum over rows: logits [n, vocab], targets int64 [n]."""
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def topk_kl(logits, ids, log_prob):
    """KL(teacher || student) over the teacher's k tokens and one ghost token for all the others.

    @param logits    [n, vocab] of the student.
    @param ids       int [n, k] of the teacher's most probable tokens.
    @param log_prob  [n, k] natural log of their probabilities.
    @return  Sum over the rows. With the ghost token the probabilities of both sides sum to one, so
             the student cannot gain by moving mass to or from the tokens outside the k.
    """
    student = F.log_softmax(logits.float(), -1).gather(-1, ids.long())
    teacher = log_prob.float().clamp(min=LOG_PROB_MIN)
    student_tail = (1 - student.exp().sum(-1)).clamp(min=TAIL_MIN)
    teacher_tail = (1 - teacher.exp().sum(-1)).clamp(min=TAIL_MIN)
    inside = (teacher.exp() * (teacher - student)).sum(-1)
    return (inside + teacher_tail * (teacher_tail.log() - student_tail.log())).sum()


class Losses:
    """The weighted loss of a batch. `rows()` says how many rows each part of it has."""

    def __init__(self, anchors, variances, options):
        """
        @param anchors    {capture: (student layer, weight)}
        @param variances  {capture: variance of the teacher's values}
        """
        self._anchors, self._variances = anchors, variances
        self._ce, self._kl, self._alpha = options.ce_weight, options.kl_weight, options.alpha_hidden
        self._skip = options.skip_first_tokens

    def rows(self, batch):
        """{part of the loss: rows of it in this batch}"""
        counts = {"ce": int(rows_with_target(batch).sum())}
        if TOPK in batch:
            counts["kl"] = int(self._topk_rows(batch)[0].sum())
        for capture in self._anchors:
            counts[capture] = int(select_rows(batch, capture, self._skip)[0].sum())
        return counts

    def _topk_rows(self, batch):
        """As select_rows(); of a capture with all rows only those with a target."""
        if TOPK + ".rows" in batch:
            return select_rows(batch, TOPK)
        mask = rows_with_target(batch)
        return mask, mask

    def __call__(self, model, batch, step_rows):
        """
        @param step_rows  rows() of all the step's batches together.
        @return  (this batch's share of the step's loss, {part: its share, unweighted, as a float})
        """
        hidden = model.student(batch["input_ids"])
        parts = self._token_losses(model, batch, hidden[-1], step_rows)
        total = self._ce * parts["ce"] + self._kl * parts.get("kl", 0)

        weights = sum(weight for _, weight in self._anchors.values())
        anchored = 0
        for capture, (layer, weight) in self._anchors.items():
            mask, keep = select_rows(batch, capture, self._skip)
            loss = anchoring(model.project(capture, hidden[layer][mask]), batch[capture][keep],
                             self._variances[capture]) / max(1, step_rows[capture])
            anchored = anchored + weight / weights * loss
        if self._anchors:
            parts["hidden"] = anchored
            total = total + self._alpha * anchored
        return total, {name: float(value.detach()) for name, value in parts.items()}

    def _token_losses(self, model, batch, last_hidden, step_rows):
        target = rows_with_target(batch)
        topk, keep = self._topk_rows(batch) if TOPK in batch else (target, None)
        # The head is the widest matrix: it runs once, and only over the rows that a loss looks at.
        needed = target | topk
        logits = model.student.logits(last_hidden[needed])
        next_ids = batch["input_ids"].roll(-1, dims=1)
        parts = {"ce": cross_entropy(logits[target[needed]], next_ids[target])
                 / max(1, step_rows["ce"])}
        if keep is not None:
            teacher = batch[TOPK]
            parts["kl"] = topk_kl(logits[topk[needed]], teacher["ids"][keep],
                                  teacher["log_prob"][keep]) / max(1, step_rows["kl"])
        return parts
