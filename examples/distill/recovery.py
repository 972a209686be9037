"""What a run survives: checkpoints that are whole or absent, and steps whose loss jumps."""

import math
import os
import statistics

import torch

HISTORY_STEPS = 20  # The running median looks back that far,
HISTORY_STEPS_MIN = 5  # and says nothing before it has seen so many.


class SpikeDetector:
    """Knows the losses of the last steps, and so which one does not belong."""

    def __init__(self, factor):
        self.factor = factor
        self.losses = []

    def median(self):
        return statistics.median(self.losses) if self.losses else math.inf

    def why_bad(self, loss, gradient_norm):
        """A sentence if this step must not be taken, else None."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the gradient's norm is {gradient_norm}"
        if len(self.losses) >= HISTORY_STEPS_MIN and loss > self.factor * self.median():
            return (f"the loss {loss:.4g} is above {self.factor:g} x the median "
                    f"{self.median():.4g} of the last {len(self.losses)} steps")
        return None

    def accept(self, loss):
        self.losses = (self.losses + [loss])[-HISTORY_STEPS:]


class Checkpoints:
    """DIR/last.pt and DIR/best.pt: plain dicts of tensors and numbers."""

    def __init__(self, folder):
        self._folder = folder
        self.last, self.best = folder / "last.pt", folder / "best.pt"

    def save(self, state, is_best):
        """Writes last.pt, and makes it best.pt too if `is_best`. Whenever the process or the
        machine stops, each name stands for a whole checkpoint, the old or the new."""
        unfinished = self._folder / "last.pt.unfinished"
        with open(unfinished, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if is_best:  # One file with two names costs no second writing.
            link = self._folder / "best.pt.unfinished"
            link.unlink(missing_ok=True)
            os.link(unfinished, link)
            os.replace(link, self.best)
        os.replace(unfinished, self.last)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @staticmethod
    def load(path, device):
        # weights_only: a checkpoint is data, so loading one runs no code that lies in it. The first
        # torch that had it, 1.13, cannot read plain floats that way.
        return torch.load(path, map_location=device,
                          weights_only=not torch.__version__.startswith("1."))
