"""What the store gives: which layers to hold the student to, and batches without end."""

import re

import torch
from torch.utils.data import DataLoader

from losses import TOPK, select_rows
from nexus_librarian import ActivationDataset, ActivationStream, collate_padded

VARIANCE_SAMPLES = 32


def layer_of(capture, teacher_layers):
    """Teacher's layer after which a capture was taken, from 0; None if it is no residual stream."""
    if capture == "final.pre_norm":
        return teacher_layers - 1
    match = re.fullmatch(r"blocks\.(\d+)\.resid_post", capture)
    return int(match[1]) if match else None


def choose_anchors(store, teacher_layers, student_layers, pairs, critical, critical_weight):
    """Which capture each student layer is held to.

    @param pairs     {teacher layer: student layer}, or None: for each student layer the captured
                     layer of the teacher that is nearest to the same relative depth.
    @param critical  Teacher layers whose loss counts `critical_weight` times.
    @return  {capture: (student layer, weight)}
    @raise ValueError  A layer that is not there, or not an anchor.
    """
    captured = {}
    for name in store.captures:
        layer = layer_of(name, teacher_layers)
        if layer is not None:
            captured.setdefault(layer, name)
    if pairs is None:
        pairs = {}
        for student_layer in range(student_layers):
            wanted = (student_layer + 1) / student_layers * teacher_layers - 1
            free = [layer for layer in captured if layer not in pairs]
            if free:
                pairs[min(free, key=lambda layer: abs(layer - wanted))] = student_layer
    for teacher_layer, student_layer in pairs.items():
        if teacher_layer not in captured:
            raise ValueError(f"--anchors: the store has no resid_post of layer {teacher_layer}; it "
                             f"has layers {', '.join(map(str, sorted(captured))) or 'none'}")
        if not 0 <= student_layer < student_layers:
            raise ValueError(f"--anchors: no student layer {student_layer}; there are "
                             f"{student_layers}, from 0")
    for layer in critical:
        if layer not in pairs:
            raise ValueError(f"--critical-layers: layer {layer} is not an anchor; anchors are "
                             f"layers {', '.join(map(str, sorted(pairs))) or 'none'}")
    return {captured[teacher_layer]: (pairs[teacher_layer],
                                      critical_weight if teacher_layer in critical else 1.0)
            for teacher_layer in sorted(pairs)}


def measure_variances(store, captures, first):
    """{capture: mean over its columns of their variance}, over samples spread evenly in the store.

    @param first  Rows at each sample's beginning that are left out, as in the loss.
    """
    dataset = ActivationDataset(store, captures)
    count = min(VARIANCE_SAMPLES, len(dataset))
    picked = torch.linspace(0, len(dataset) - 1, count).round().long().unique()
    rows = {capture: [] for capture in captures}
    for index in picked.tolist():
        batch = collate_padded([dataset[index]])
        for capture in captures:
            rows[capture].append(batch[capture][select_rows(batch, capture, first)[1]].float())
    variances = {}
    for capture in captures:
        values = torch.cat(rows[capture])
        if len(values) < 2:
            raise ValueError(f"{capture}: too few rows to measure the teacher's variance; it needs "
                             "positions=all, or a smaller --skip-first-tokens")
        variances[capture] = max(float(values.var(0).mean()), 1e-12)
    return variances


def to_device(batch, device):
    if isinstance(batch, dict):
        return {name: to_device(value, device) for name, value in batch.items()}
    return batch.to(device, non_blocking=True) if torch.is_tensor(batch) else batch


class Batches:
    """Padded batches of the store, epoch after epoch, from where a checkpoint left off.

    `taken` counts the batches since the first epoch's beginning, so it names a place in the data.
    """

    def __init__(self, store, anchors, batch_size, seed, workers):
        captures = list(anchors) + ([TOPK] if TOPK in store.captures else [])
        self._stream = ActivationStream(store, captures, batch_size=batch_size, seed=seed)
        self._workers = workers
        self._epoch = 0
        self.taken = 0
        self._start()

    def _start(self):
        self._loader = iter(DataLoader(self._stream, batch_size=None, num_workers=self._workers))
        self._delivered = 0  # By this loader; its workers have read further already.

    def next(self):
        """The next batch; from time to time the first one of a new epoch."""
        batch = next(self._loader, None)
        if batch is None:
            self._epoch += 1
            self._stream.set_epoch(self._epoch)  # Takes up parts that were completed since.
            self._start()
            batch = next(self._loader)
        self._delivered += 1
        self.taken += 1
        return batch

    def state_dict(self):
        delivered = self._delivered if self._workers else None
        return {"stream": self._stream.state_dict(delivered=delivered), "taken": self.taken}

    def load_state_dict(self, state):
        self._stream.load_state_dict(state["stream"])
        self._epoch = self._stream.epoch
        self.taken = state["taken"]
        self._start()
