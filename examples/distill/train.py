#!/usr/bin/env python3
"""Train a small student from a Librarian store: it learns text, the teacher's layers and logits.

    train.py acts --out run              # acts is what `librarian extract --out acts` wrote
    train.py acts --out run --resume     # goes on at the last checkpoint

Read from the top: what a step is, then the run: how it begins, what is saved, and what happens when
a step goes wrong. README.md says what each file beside this one holds.
"""

import importlib.util
import json
import math
import sys

import torch

from data import Batches, choose_anchors, measure_variances, to_device
from losses import TOPK, Losses
from nexus_librarian import ActivationStore, StoreError
from options import check_same_run, parse_options, run_options
from progress import Progress, plot_losses
from recovery import Checkpoints, SpikeDetector
from student import StudentShape, build, copy_from_teacher

INJECTED_FACTOR = 1000.0


class GaveUp(Exception):
    """More rollbacks than allowed."""


def learning_rate(step, options):
    """Of step number `step`, from 0: a linear rise, then half a cosine down to a tenth."""
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    return options.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizer(model, device, options):
    """AdamW; on a GPU with bitsandbytes, 8-bit states that are paged to host memory."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]  # Norms and biases do not decay.
    groups = [{"params": matrices, "weight_decay": options.weight_decay},
              {"params": others, "weight_decay": 0.0}]
    optimizer_class = torch.optim.AdamW
    if device.type == "cuda" and importlib.util.find_spec("bitsandbytes"):
        from bitsandbytes.optim import PagedAdamW8bit as optimizer_class
    return optimizer_class(groups, lr=options.lr, betas=(0.9, 0.95))


def add_gradients(model, losses, batches, device, bf16, factor):
    """Forward and backward of a step's batches, one after the other.

    @param factor  Multiplies the first batch's loss; 1 but for --inject-spike.
    @return  ({part of the loss: value of the step}, tokens); gradients are in the parameters.
    """
    step_rows = {}
    for batch in batches:
        for name, rows in losses.rows(batch).items():
            step_rows[name] = step_rows.get(name, 0) + rows
    step_parts, tokens = {"loss": 0.0}, 0
    for batch in batches:
        tokens += int(batch["attention_mask"].sum())
        batch = to_device(batch, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss, parts = losses(model, batch, step_rows)
        loss = loss * factor
        factor = 1.0
        loss.backward()
        for name, value in {"loss": float(loss.detach()), **parts}.items():
            step_parts[name] = step_parts.get(name, 0.0) + value
    return step_parts, tokens


class Run:
    """What is trained, where it stands in the data, and what it knows about its own losses."""

    def __init__(self, options):
        self.options, self.device = options, torch.device(options.device)
        self.checkpoints = Checkpoints(options.out)
        store = open_store(options)
        config = read_config(options.teacher)
        resumed = self._read_last_checkpoint()

        if options.alpha_hidden == 0:
            anchors = {}
        else:
            anchors = choose_anchors(store, layer_count(config), options.layers, options.anchors,
                                     options.critical_layers, options.critical_weight)
        # Measured once: were they measured anew on a store that has grown, the loss would jump.
        self.variances = resumed["variances"] if resumed else measure_variances(
            store, list(anchors), options.skip_first_tokens)
        self.losses = Losses(anchors, self.variances, options)
        self.batches = Batches(store, anchors, options.batch_size, options.seed, options.workers)

        shape = StudentShape(config["vocab_size"], options.width, options.layers, options.heads,
                             options.ffn)
        teacher_width = store.capture_info(next(iter(anchors)))[""].width if anchors else 0
        self.model = build(shape, list(anchors), teacher_width, self.device, options.seed)
        copied = []
        if options.copy_from_teacher and not resumed:
            copied = copy_from_teacher(self.model.student, options.teacher, config)
        self.optimizer = make_optimizer(self.model, self.device, options)
        self.detector = SpikeDetector(options.spike_factor)
        self.step = 0  # Steps taken.
        self.lr_scale, self.rollbacks = 1.0, 0
        self.skipped = set()  # Places in the data (Batches.taken) where a step's batches were bad.
        self.best_median = math.inf
        if resumed:
            self._restore(resumed)
            self.lr_scale, self.rollbacks = resumed["lr_scale"], resumed["rollbacks"]
            self.skipped = set(resumed["skipped"])
        self.progress = Progress(options.out, options.steps, options.log_every, self.step,
                                 resumed["rows"] if resumed else 0)
        self._say_what_is_trained(store, anchors, copied, resumed is not None)
        if not resumed:
            self.save()  # There is something to roll back to from the first step on.

    def _read_last_checkpoint(self):
        options = self.options
        options.out.mkdir(parents=True, exist_ok=True)
        if not self.checkpoints.last.is_file():
            return None
        if not options.resume:
            raise ValueError(f"{options.out} holds a run already; add --resume to go on with it, "
                             "or take another --out")
        state = Checkpoints.load(self.checkpoints.last, self.device)
        check_same_run(state["options"], options)
        return state

    def _say_what_is_trained(self, store, anchors, copied, resumed):
        million = sum(p.numel() for p in self.model.parameters()) / 1e6
        kl = "KL on logits.topk" if TOPK in store.captures else "no logits.topk in the store"
        self.progress.say(f"{len(store)} samples; student of {million:.2f} million parameters on "
                          f"{self.device}, {type(self.optimizer).__name__}; {kl}")
        if not anchors:
            self.progress.say("no layer of the student is held to the teacher's")
        for capture, (layer, weight) in anchors.items():
            self.progress.say(f"student layer {layer} is held to {capture}, weight {weight:g}")
        for name in copied:
            self.progress.say(f"{name} is the teacher's")
        if resumed:
            self.progress.say(f"resumed at step {self.step}")

    def save(self):
        """A checkpoint; the best one if the running median of the loss was never lower."""
        median = self.detector.median()
        is_best = median <= self.best_median
        self.best_median = min(median, self.best_median)
        self.checkpoints.save({
            "options": run_options(self.options), "variances": self.variances,
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "data": self.batches.state_dict(), "step": self.step,
            "recent_losses": self.detector.losses, "best_median": self.best_median,
            "lr_scale": self.lr_scale, "rollbacks": self.rollbacks,
            "skipped": sorted(self.skipped), "rows": self.progress.rows}, is_best)

    def _restore(self, state):
        """All but what a rollback must not forget: how many there were, and what they skip."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["data"])
        self.step = state["step"]  # The schedule is a function of it.
        self.detector.losses = state["recent_losses"]
        self.best_median = state["best_median"]

    def roll_back(self, why, place):
        """Back to the best checkpoint, with a smaller learning rate and without the batches at
        `place` in the data.

        @raise GaveUp  There were --max-rollbacks already.
        """
        self.progress.say(f"step {self.step + 1}: {why}")
        if self.rollbacks == self.options.max_rollbacks:
            raise GaveUp(f"{self.rollbacks} rollbacks did not help; look at "
                         f"{self.options.out}/losses.csv, then try a smaller --lr or a larger "
                         "--spike-factor")
        self.rollbacks += 1
        self.lr_scale *= self.options.rollback_lr
        self.skipped.add(place)
        self._restore(Checkpoints.load(self.checkpoints.best, self.device))
        self.save()  # A run that is killed now resumes behind the rollback, not before the spike.
        self.progress.say(f"rolled back to step {self.step}; the learning rate is now "
                          f"{self.lr_scale:g} x the schedule's")

    def take_step(self):
        """One step, or one rollback."""
        options = self.options
        place = self.batches.taken
        batches = [self.batches.next() for _ in range(options.accumulate)]
        if place in self.skipped:
            return
        inject = options.inject_spike == self.step + 1 and not self.rollbacks
        self.optimizer.zero_grad(set_to_none=True)
        parts, tokens = add_gradients(self.model, self.losses, batches, self.device, options.bf16,
                                      INJECTED_FACTOR if inject else 1.0)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip))
        lr = learning_rate(self.step, options) * self.lr_scale
        row = {"step": self.step + 1, "batches": place, **parts, "lr": lr, "gradient_norm": norm}
        why = self.detector.why_bad(parts["loss"], norm)
        if why:
            self.progress.step({**row, "event": "spike"}, tokens)
            self.roll_back(why, place)
            return
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.step += 1
        self.detector.accept(parts["loss"])
        self.progress.step(row, tokens)
        if self.step % options.save_every == 0 or self.step == options.steps:
            self.save()

    def finish(self):
        """Closes losses.csv and draws it."""
        self.progress.close()
        picture = self.options.out / "losses.png"
        if plot_losses(self.options.out / "losses.csv", picture):
            self.progress.say(f"the losses are drawn in {picture}")
        else:
            self.progress.say("matplotlib is not installed, so there is no picture; the losses are "
                              f"in {self.options.out}/losses.csv")


def open_store(options):
    store = ActivationStore(options.store)
    if len(store) == 0:
        raise ValueError(f"{options.store[0]}: no part is complete yet; wait for "
                         "`librarian extract`")
    return store


def read_config(teacher):
    path = teacher / "config.json"
    if not path.is_file():
        raise ValueError(f"{path} is not there; name the teacher's folder with --teacher")
    config = json.loads(path.read_text())
    return config.get("text_config", config)  # Models that also see images nest it.


def layer_count(config):
    for name in ("num_hidden_layers", "n_layer"):
        if name in config:
            return config[name]
    raise ValueError("the teacher's config.json has no num_hidden_layers; add it")


def main():
    options = parse_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        run = Run(options)
        try:
            while run.step < options.steps:
                run.take_step()
        finally:
            run.finish()
    except KeyboardInterrupt:
        print(f"train.py: stopped; with --resume the run in {options.out} goes on at its last "
              "checkpoint", file=sys.stderr)
        return 130
    except (ValueError, StoreError, GaveUp) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1 if isinstance(error, GaveUp) else 2 if isinstance(error, ValueError) else 3
    print(f"done: {run.step} steps, {run.rollbacks} rollbacks, median loss of the last steps "
          f"{run.detector.median():.4f}; the student is in {run.checkpoints.last}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
