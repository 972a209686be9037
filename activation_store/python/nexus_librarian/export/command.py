"""The command line: librarian export DIR... --to speculators|specforge|safetensors --out FOLDER"""

from __future__ import annotations

import argparse
import importlib.util
import re
import signal
import sys
from typing import Any, NoReturn, Sequence

from .._decoder import DamagedStoreError, NotInStoreError, StoreError
from .._states import POST_NORM, PRE_NORM, DraftStates
from ..store import ActivationStore
from .errors import BAD_INPUT, DAMAGED, DOES_NOT_FIT, USAGE, ExportError
from .final_norm import FinalNorm, final_norm_of
from .output import Output
from .records import export_records

_EPILOG = """\
speculators  OUT is the --data-path of speculators' trainer: an Arrow data set and
             hidden_states/hs_{i}.safetensors [tokens, layers + 1, width], the last of them the final
             state BEFORE the final norm. Needs pyarrow and torch. Its --target-layer-ids are printed.
specforge    OUT is data.hidden_states_path of SpecForge's EAGLE-3: rows_*/data_{i}.ckpt, hidden_state
             the final state AFTER the final norm: final.post_norm of the store, or the norm in its
             model/ of final.pre_norm.
safetensors  shards of [rows, width] per capture with offsets and token ids, and index.json.

The same command again continues; no record that is there is written twice. Exit codes as
librarian's: 2 usage, 3 bad input or NaN, 4 output of another export, 5 no room or a disk error,
7 damaged or incomplete store.
"""
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ExportError(USAGE, f"{message}; see librarian export --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _export(_parser().parse_args(arguments))
        return 0
    except ExportError as error:
        return _failed(error.exit_code, error)
    except DamagedStoreError as error:
        return _failed(DAMAGED, error)
    except (StoreError, ValueError) as error:
        return _failed(BAD_INPUT, error)
    except OSError as error:
        return _failed(DOES_NOT_FIT, ": ".join(filter(None, (error.filename, error.strerror))))
    except _Interrupted as stop:
        return _failed(128 + stop.number, "stopped by a signal; the same command continues")
    except KeyboardInterrupt:
        return _failed(128 + signal.SIGINT, "stopped by a signal; the same command continues")


class _Interrupted(BaseException):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _interrupt(number: int, _frame: Any) -> NoReturn:
    raise _Interrupted(number)


def _failed(exit_code: int, sentence: object) -> int:
    print(f"librarian: {sentence}", file=sys.stderr)
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="librarian export", description=__doc__.partition("\n")[0],
                     epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="+", metavar="DIR", help="a store, or several, joined")
    parser.add_argument("--to", required=True, choices=["speculators", "specforge", "safetensors"])
    parser.add_argument("--out", required=True, metavar="FOLDER")
    parser.add_argument("--capture", action="append", metavar="NAME,...",
                        help="hidden layers in the order in which the draft model joins them (default: "
                        "every captured block output but the last block's); safetensors: what to write "
                        "(default: all)")
    parser.add_argument("--num-samples", type=int, metavar="N", help="the first N")
    parser.add_argument("--fp8", action="store_true",
                        help="speculators: float8_e4m3 with one scale per token "
                        "(--hidden-states-backend fp8)")
    parser.add_argument("--shard-size", type=_bytes, metavar="SIZE",
                        help="safetensors: the most bytes of a file, as 4GiB (default 1GiB)")
    parser.add_argument("--skip-nonfinite", action="store_true",
                        help="leave out samples with NaN or infinity and list them in export.json, "
                        "instead of stopping")
    return parser


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B)?", text.upper())
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text}: a size is a number and a unit, as 512MiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def _export(options: argparse.Namespace) -> None:
    if options.fp8 and options.to != "speculators":
        raise ExportError(USAGE, "--fp8 is a form of --to speculators only")
    if options.shard_size is not None and options.to != "safetensors":
        raise ExportError(USAGE, "--shard-size belongs to --to safetensors")
    if options.num_samples is not None and options.num_samples < 1:
        raise ExportError(USAGE, "--num-samples: at least 1 is needed")
    if options.to == "speculators" and importlib.util.find_spec("pyarrow") is None:
        raise ExportError(USAGE, "--to speculators needs the Python package pyarrow: "
                          "pip install 'nexus-librarian[export]'")
    store = ActivationStore(options.store, framework="numpy")
    if not store.complete:
        raise ExportError(DAMAGED, f"{', '.join(store.paths)}: parts are missing, and sample numbers "
                          "would change with them; finish extract first")
    captures = [name for text in options.capture or [] for name in text.split(",")] or None
    samples = min(len(store), options.num_samples or len(store))
    _warn_of_mask(store, options.to)
    if options.to == "safetensors":
        _to_safetensors(options, store, captures or store.captures, samples)
    else:
        _to_trainer(options, store, captures, samples)


def _to_trainer(options: argparse.Namespace, store: ActivationStore, captures: list[str] | None,
                samples: int) -> None:
    speculators = options.to == "speculators"
    if speculators:
        from .speculators import SpeculatorsRecords, write_data_set
        states, norm = DraftStates(store, captures, PRE_NORM), None
        form: Any = SpeculatorsRecords(states, options.fp8)
    else:
        from .specforge import SpecForgeRecords
        states, norm = _states_after_the_norm(store, captures)
        form = SpecForgeRecords(states, norm)
    final = states.final if norm is None else f"model/'s norm of {states.final}"
    settings = {"to": options.to, "stores": store.identities, "captures": states.hidden,
                "final": final, "samples": samples, "fp8": options.fp8}
    output = Output(options.out, settings)
    try:
        export_records(output, form, samples, options.skip_nonfinite, options.to)
        if not output.complete:
            if speculators:
                write_data_set(output, states, samples)
            output.finish()
        kept = samples - len(output.skipped)
    finally:
        output.close()
    ids = ",".join(map(str, states.layer_ids if speculators else states.block_ids))
    form_of_ids = "target-layer-ids" if speculators else "aux_hidden_state_layer_ids"
    _done(options.out, kept, samples, f"layers {', '.join(states.hidden)} ({form_of_ids} {ids}), "
          f"final state {final}")


def _states_after_the_norm(
        store: ActivationStore, captures: list[str] | None) -> tuple[DraftStates, FinalNorm | None]:
    """The final state after the norm as captured, else before it with the model's own norm."""
    try:
        return DraftStates(store, captures, POST_NORM), None
    except NotInStoreError:
        if POST_NORM in store.captures or (norm := final_norm_of(store)) is None:
            raise
        return DraftStates(store, captures, PRE_NORM), norm


def _to_safetensors(options: argparse.Namespace, store: ActivationStore, captures: list[str],
                    samples: int) -> None:
    from .shards import ShardExport

    shard_bytes = options.shard_size or 2**30
    for capture in captures:
        store.capture_info(capture)  # Refuses what is not there before anything is made.
    output = Output(options.out, {"to": options.to, "stores": store.identities, "captures": captures,
                                  "samples": samples, "shard_bytes": shard_bytes})
    try:
        if not output.complete:
            ShardExport(output, store, captures, samples, shard_bytes, options.skip_nonfinite).run()
            output.finish()
        kept = samples - len(output.skipped)
    finally:
        output.close()
    _done(options.out, kept, samples, f"captures {', '.join(captures)}")


def _warn_of_mask(store: ActivationStore, to: str) -> None:
    if to != "safetensors" and not all(store.part(key).has_loss_mask for key in store.parts):
        print("librarian: the store has no loss mask, so the trainer counts every token",
              file=sys.stderr)


def _done(folder: str, kept: int, samples: int, what: str) -> None:
    left_out = f", {samples - kept} left out (export.json lists them)" if kept != samples else ""
    print(f"{folder}: {kept} samples{left_out}; {what}")
