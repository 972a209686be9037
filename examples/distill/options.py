"""The options of train.py, and which of them may change when a run goes on."""

import argparse
import pathlib

import torch

# May differ between a run and its continuation: they change no number that is learned.
FREE_OPTIONS = {"store", "out", "resume", "teacher", "device", "workers", "threads", "log_every",
                "save_every", "max_rollbacks"}


def layer_pairs(text):
    """"8:1,17:3" -> {8: 1, 17: 3}: teacher layer to student layer."""
    try:
        pairs = [tuple(map(int, pair.split(":"))) for pair in text.split(",")]
        if any(len(pair) != 2 for pair in pairs) or len(dict(pairs)) != len(pairs):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text}: write each teacher layer once, as in 8:1,17:3") from None
    return dict(pairs)


def layer_list(text):
    try:
        return [int(layer) for layer in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: write layer numbers, as in 8,17") from None


def parse_options(arguments=None):
    parser = argparse.ArgumentParser(
        description="Train a small student from a Librarian store.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("store", type=pathlib.Path, nargs="+", help="what `librarian extract --out` wrote; several "
        "stores of one teacher are read one after the other")
    add("--out", type=pathlib.Path, required=True, help="checkpoints, losses.csv, losses.png")
    add("--resume", action="store_true", help="go on where OUT/last.pt is; begin if there is none")
    add("--teacher", type=pathlib.Path,
        help="folder with the teacher's config.json; STORE/model if not given")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--workers", type=int, default=0, help="processes that read ahead")
    add("--threads", type=int, default=0, help="of torch on the CPU; 0: torch decides")

    group = parser.add_argument_group("student")
    group.add_argument("--width", type=int, default=128)
    group.add_argument("--layers", type=int, default=4)
    group.add_argument("--heads", type=int, default=4)
    group.add_argument("--ffn", type=int, default=352)
    group.add_argument("--copy-from-teacher", action="store_true",
                       help="begin with the teacher's embedding, final norm and head; --width must "
                       "be the teacher's")

    group = parser.add_argument_group("losses")
    group.add_argument("--anchors", type=layer_pairs, metavar="T:S,T:S",
                       help="teacher layer : student layer; if not given, for each student layer "
                       "the captured teacher layer nearest to the same relative depth")
    group.add_argument("--alpha-hidden", type=float, default=1.0,
                       help="weight of the anchoring; 0: none")
    group.add_argument("--critical-layers", type=layer_list, default=[], metavar="T,T",
                       help="teacher layers whose anchors count more")
    group.add_argument("--critical-weight", type=float, default=10.0)
    group.add_argument("--skip-first-tokens", type=int, default=1,
                       help="rows of each sample that are not anchored: a teacher's values at its "
                       "first token are often a hundred times larger than all others")
    group.add_argument("--ce-weight", type=float, default=1.0)
    group.add_argument("--kl-weight", type=float, default=1.0, help="if the store has logits.topk")

    group = parser.add_argument_group("training")
    group.add_argument("--steps", type=int, default=300)
    group.add_argument("--batch-size", type=int, default=4, help="samples of one forward pass")
    group.add_argument("--accumulate", type=int, default=2, help="forward passes of one step")
    group.add_argument("--lr", type=float, default=2e-3)
    group.add_argument("--warmup", type=int, default=20, help="steps")
    group.add_argument("--weight-decay", type=float, default=0.1)
    group.add_argument("--clip", type=float, default=1.0, help="the gradient's norm at most")
    group.add_argument("--bf16", action="store_true", help="autocast the student to bfloat16")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--log-every", type=int, default=10, help="steps between lines that stay")
    group.add_argument("--save-every", type=int, default=50, help="steps")

    group = parser.add_argument_group("when a step goes wrong")
    group.add_argument("--spike-factor", type=float, default=3.0,
                       help="a loss above this times the running median is refused")
    group.add_argument("--max-rollbacks", type=int, default=5)
    group.add_argument("--rollback-lr", type=float, default=0.5,
                       help="each rollback multiplies the learning rate by this")
    group.add_argument("--inject-spike", type=int, metavar="STEP",
                       help="for demonstration: multiply one loss of this step by 1000")
    options = parser.parse_args(arguments)

    for name in ("width", "layers", "heads", "ffn", "steps", "batch_size", "accumulate",
                 "log_every", "save_every"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if options.width % options.heads or options.width // options.heads % 2:
        parser.error("--width / --heads must be a whole even number")
    if options.spike_factor <= 1:
        parser.error("--spike-factor must be above 1")
    if options.teacher is None:
        options.teacher = options.store[0] / "model"
    return options


def run_options(options):
    """The options that decide what is learned, as plain values."""
    return {name: value for name, value in vars(options).items() if name not in FREE_OPTIONS}


def check_same_run(saved, options):
    """@raise ValueError  A checkpoint was made with other options."""
    for name, value in run_options(options).items():
        if saved.get(name) != value:
            raise ValueError(f"--resume: the run in {options.out} has --{name.replace('_', '-')} "
                             f"{saved.get(name)}, not {value}; give the same or take another --out")
