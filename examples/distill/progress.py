"""What a run shows: a line, losses.csv, TensorBoard's events, and losses.png at the end."""

import csv
import importlib.util
import os
import sys
import time

COLUMNS = ["step", "batches", "loss", "ce", "kl", "hidden", "lr", "gradient_norm", "event"]


class Progress:
    """One row of losses.csv per step, in the order in which things happened: after a rollback the
    step numbers go back, and the row of the step that was refused says `spike`."""

    def __init__(self, folder, steps, log_every, first_step, rows):
        """
        @param first_step  Step that a resumed run stands at; 0: a new run.
        @param rows        Rows of losses.csv up to there. Those behind are of steps that were lost
                           when the run was stopped, and that are done again.
        """
        self._path = folder / "losses.csv"
        self._steps, self._log_every = steps, log_every
        self._live = sys.stdout.isatty()
        self._started, self._first_step, self._tokens = time.monotonic(), first_step, 0
        self.rows = rows
        write_losses(self._path, read_losses(self._path)[:rows] if rows else [])
        self._file = open(self._path, "a", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS, restval="")
        self._tensorboard = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
            self._tensorboard = SummaryWriter(str(folder / "tensorboard"),
                                              purge_step=first_step + 1)
        else:
            self.say("TensorBoard is not installed: no event files are written.")

    def say(self, line):
        if self._live:
            print("\r\033[K", end="")
        print(line, flush=True)

    def step(self, row, tokens):
        """
        @param row     Values of COLUMNS by name; `step` counts from 1.
        @param tokens  Tokens that the step has read.
        """
        self._writer.writerow(row)
        self._file.flush()
        self.rows += 1
        self._tokens += tokens
        if row.get("event"):
            return
        if self._tensorboard:
            for name in ("loss", "ce", "kl", "hidden", "lr", "gradient_norm"):
                if name in row:
                    self._tensorboard.add_scalar(name, row[name], row["step"])
        due = row["step"] % self._log_every == 0 or row["step"] == self._steps
        if self._live:
            print("\r\033[K" + self._line(row), end="\n" if due else "", flush=True)
        elif due:
            print(self._line(row), flush=True)

    def _line(self, row):
        seconds = time.monotonic() - self._started
        left = seconds / max(1, row["step"] - self._first_step) * (self._steps - row["step"])
        parts = ", ".join(f"{name} {row[name]:.4f}" for name in ("ce", "kl", "hidden")
                          if name in row)
        return (f"step {row['step']}/{self._steps}  loss {row['loss']:.4f} ({parts})  "
                f"lr {row['lr']:.2e}  {self._tokens / seconds:.0f} tokens/s  "
                f"{int(left) // 60}:{int(left) % 60:02d} left")

    def close(self):
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()


def read_losses(path):
    """The rows of losses.csv; a last one that a killed process left unfinished is dropped."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        text = file.read()
    lines = text[: text.rfind("\n") + 1].splitlines()
    return list(csv.DictReader(lines))


def write_losses(path, rows):
    unfinished = path.with_suffix(".unfinished")
    with open(unfinished, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(unfinished, path)


def plot_losses(csv_path, path):
    """Draws the losses of a losses.csv; returns False where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure  # Draws into files: no display, no global state.

    rows = read_losses(csv_path)
    taken = {}  # Of a step that was done again after a rollback, the last time counts.
    for row in rows:
        if not row["event"]:
            taken[int(row["step"])] = row
    spikes = [row for row in rows if row["event"]]
    names = [name for name in ("loss", "ce", "kl", "hidden")
             if any(row[name] != "" for row in taken.values())]
    figure = Figure(figsize=(8, 5), dpi=120)
    axes = figure.subplots()
    for name in names:
        points = [(step, float(row[name])) for step, row in sorted(taken.items())
                  if row[name] != ""]
        axes.plot(*zip(*points), label=name, linewidth=2 if name == "loss" else 1)
    for i, row in enumerate(spikes):
        axes.axvline(int(row["step"]), color="black", linestyle=":",
                     label="rolled back" if i == 0 else None)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="Distillation losses")
    axes.grid(alpha=0.3)
    if names or spikes:
        axes.legend()
    figure.savefig(path)
    return True
