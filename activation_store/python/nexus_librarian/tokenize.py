"""`librarian tokenize`: texts and chats to the token file that `librarian extract` takes.

    python3 -m nexus_librarian.tokenize --tokenizer DIR --input chats.jsonl --out tokens.safetensors
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from .tokenizing.failure import (
    EXIT_BAD_INPUT,
    EXIT_DOES_NOT_FIT,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    EXIT_USAGE,
    Refusal,
    RowFailure,
    one_line,
)

if TYPE_CHECKING:
    from .tokenizing.encoder import Encoder
    from .tokenizing.rows import Row
    from .tokenizing.token_file import TokenFileWriter

_FAILURES_PRINTED_MAX = 10
_BATCH_ROWS, _BATCH_BYTES = 256, 4 << 20
_PROGRESS_SECONDS = 0.5
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

_EPILOG = """\
A row is one of {"messages": [{"role", "content"}...]}, {"conversations": [{"from", "value"}...]},
{"prompt", "response"}, {"text"}, {"input_ids", optional "loss_mask"}; chats may have "tools", "system"
and "chat_template_kwargs". Of several the first of input_ids, messages, conversations, prompt, text
counts.

Loss mask: of a chat, the assistant's turns with their end-of-turn token; of a text, all of it; of
input_ids, their loss_mask, else all. A template's own {% generation %} marks win; without them each
turn is located by rendering the chat without and with it. Where that is not certain the row fails.

Rows that fail are listed as FILE:ROW: REASON and left out; the others are kept (--strict: none).

Examples:
  librarian tokenize --tokenizer ./teacher --input chats.jsonl --out tokens.safetensors
  librarian tokenize --tokenizer hf://org/name --input a.parquet b.parquet --max-length 4096 \\
      --out tokens.safetensors --errors failed_rows.txt
  librarian tokenize --tokenizer ./teacher --decode tokens.safetensors --sample 3
Exit codes: 0 done, 2 usage, 3 bad model or input, 5 does not fit on the disk, 6 the hub failed,
130/143 stopped (nothing is left behind)."""


class _Help(argparse.RawDescriptionHelpFormatter):
    def add_usage(self, usage, actions, groups, prefix=None):
        super().add_usage(usage, actions, groups, "Usage: ")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refusal(f"{message}. Try 'librarian tokenize --help'", EXIT_USAGE)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="librarian tokenize", formatter_class=_Help, epilog=_EPILOG, allow_abbrev=False,
        description="Texts and chats to token ids and loss masks, by the model's own tokenizer and "
                    "chat template.")
    add = parser.add_argument
    add("--tokenizer", required=True, metavar="PLACE",
        help="directory with tokenizer.json, such a file, or hf://org/name[@revision]")
    add("--input", action="extend", nargs="+", metavar="FILE",
        help=".jsonl, .jsonl.gz, .parquet, or - for JSON lines on standard input; repeatable")
    add("--out", type=Path, metavar="FILE", help="token file to write, .safetensors")
    add("--chat-template", type=Path, metavar="FILE",
        help="Jinja template to use instead of the tokenizer's own")
    add("--template-kwargs", type=_json_object, default={}, metavar="JSON",
        help="more variables for the template, e.g. '{\"enable_thinking\": false}'")
    add("--max-length", type=_count, default=0, metavar="N", help="cut longer samples to N tokens")
    add("--drop-overlong", action="store_true", help="leave out longer samples instead")
    add("--num-samples", type=_count, metavar="N", help="stop after N samples")
    add("--mask", choices=("assistant", "all", "none"), default="assistant",
        help="what counts for the loss (default: %(default)s)")
    add("--add-bos", choices=("auto", "yes", "no"), default="auto",
        help="bos before texts and chats; auto: as tokenizer and template have it")
    add("--errors", type=Path, metavar="FILE", help="list every failed row in this file")
    add("--strict", action="store_true", help="a failed row fails the run: exit code 3, no file")
    add("--decode", metavar="FILE",
        help="print a sample of a token file, or the ids on standard input (-), as text, with "
             "what counts for the loss in \u27e6white square brackets\u27e7")
    add("--sample", type=int, default=0, metavar="N", help="with --decode: which, from 0")
    add("--json", action="store_true", help="results as JSON lines on standard output")
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 2**40:
        raise argparse.ArgumentTypeError("must be a whole number, at least 1")
    return int(text)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return value


def _check_usage(options: argparse.Namespace) -> None:
    if options.decode is not None:
        if options.input or options.out:
            raise Refusal("--decode reads a token file: leave out --input and --out", EXIT_USAGE)
        return
    if not options.input or not options.out:
        raise Refusal("--input and --out are required. Try 'librarian tokenize --help'", EXIT_USAGE)
    if options.out.suffix != ".safetensors":
        raise Refusal(f"--out {options.out}: must end in .safetensors", EXIT_USAGE)
    if options.out.is_dir() or not options.out.parent.is_dir():
        raise Refusal(f"--out {options.out}: must be a file in a directory that exists", EXIT_USAGE)
    if options.drop_overlong and not options.max_length:
        raise Refusal("--drop-overlong needs --max-length N", EXIT_USAGE)


def _needs(*modules: str) -> None:
    """Our own modules' needs are said before they are met, in one sentence."""
    for module in modules:
        try:
            __import__(module)
        except ModuleNotFoundError as error:
            raise Refusal(f"tokenize needs the Python package {error.name}: pip install "
                          "'nexus-librarian[tokenize]'", EXIT_USAGE) from error


class _Failures:
    """Lists rows that fail: all in a file, the first ones on standard error."""

    def __init__(self, file: TextIO | None):
        self._file = file
        self.failed_rows = self.overlong_rows = 0

    @property
    def rows(self) -> int:
        """How many rows are in no sample."""
        return self.failed_rows + self.overlong_rows

    def add(self, place: str, number: int, reason: object, overlong: bool = False) -> None:
        line = f"{place}:{number}: {one_line(reason)}"
        if self._file:
            self._file.write(line + "\n")
        if overlong:
            # Asked for, so it is counted and not complained about.
            self.overlong_rows += 1
            return
        self.failed_rows += 1
        if self.failed_rows <= _FAILURES_PRINTED_MAX:
            print(f"librarian: {line}", file=sys.stderr)
        elif self.failed_rows == _FAILURES_PRINTED_MAX + 1:
            where = f"all are in {self._file.name}" if self._file else "--errors FILE lists all"
            print(f"librarian: more rows failed; {where}", file=sys.stderr)


class _Progress:
    """A line on a terminal that is written over; nothing elsewhere."""

    def __init__(self) -> None:
        self._started = self._shown = time.monotonic()
        self._on = sys.stderr.isatty()

    def show(self, writer: TokenFileWriter) -> None:
        now = time.monotonic()
        if self._on and now - self._shown >= _PROGRESS_SECONDS:
            self._shown = now
            speed = writer.tokens / (now - self._started)
            print(f"\r{writer.samples} samples, {writer.tokens} tokens, {speed:.0f} tokens/s\x1b[K",
                  end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._on:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _batches(places: list[str]) -> Iterator[list[tuple[str, int, Row | str]]]:
    """Rows of all inputs in order, in batches limited in rows and, about, in bytes."""
    from .tokenizing.rows import read_rows

    batch: list[tuple[str, int, Row | str]] = []
    size = 0
    for place in places:
        for number, row, row_bytes in read_rows(place):
            batch.append((place, number, row))
            size += row_bytes
            if len(batch) == _BATCH_ROWS or size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _tokenize(options: argparse.Namespace, encoder: Encoder, writer: TokenFileWriter,
              failures: _Failures) -> int:
    """Encodes all rows into the writer. Returns how many samples were cut."""
    from .tokenizing.encoder import Overlong

    progress, truncated = _Progress(), 0
    wanted = options.num_samples or sys.maxsize
    for batch in _batches(options.input):
        results = iter(encoder.encode([row for _, _, row in batch if not isinstance(row, str)]))
        for place, number, row in batch:
            result = RowFailure(row) if isinstance(row, str) else next(results)
            if isinstance(result, RowFailure):
                failures.add(place, number, result, isinstance(result, Overlong))
                continue
            writer.append(result.input_ids, result.loss_mask)
            truncated += result.truncated
            if writer.samples == wanted:
                break
        progress.show(writer)
        if writer.samples == wanted:
            break
    progress.clear()
    return truncated


def _run(options: argparse.Namespace) -> int:
    _needs("tokenizers", "jinja2", "numpy")
    from .tokenizing.encoder import Encoder
    from .tokenizing.token_file import TokenFileWriter
    from .tokenizing.tokenizer_files import load_tokenizer, read_template

    files = load_tokenizer(options.tokenizer)
    if options.decode is not None:
        return _decode(options, files.tokenizer)
    template = read_template(options.chat_template) if options.chat_template else None
    _start_threads(files.tokenizer)
    encoder = Encoder(files, options.mask, template, options.max_length, options.drop_overlong,
                      options.add_bos, options.template_kwargs)
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(options.errors.open("w", encoding="utf-8")
                                     ) if options.errors else None
        failures = _Failures(errors)
        writer = stack.enter_context(TokenFileWriter(options.out, options.mask != "none"))
        truncated = _tokenize(options, encoder, writer, failures)
        if failures.failed_rows and options.strict:
            raise Refusal(f"{failures.failed_rows} rows failed and --strict allows none; "
                          f"{options.out} is not written")
        if not writer.samples:
            raise Refusal(f"none of the {failures.rows} rows became a sample; {options.out} is not "
                          "written")
        metadata = {"librarian_tokens": "1", "tokenizer_sha256": files.sha256}
        if encoder.template_sha256:
            metadata["chat_template_sha256"] = encoder.template_sha256
        metadata |= {"mask": options.mask, "truncated_samples": str(truncated),
                     "dropped_rows": str(failures.rows)}
        if options.max_length:
            metadata["max_length"] = str(options.max_length)
        writer.publish(metadata)
    facts = {
        "out": str(options.out), "samples": writer.samples, "tokens": writer.tokens,
        "longest_sample": writer.longest_sample,
        "loss_tokens": None if options.mask == "none" else writer.loss_tokens,
        "truncated_samples": truncated, "failed_rows": failures.failed_rows,
        "overlong_rows": failures.overlong_rows, "tokenizer_sha256": files.sha256,
        "chat_template_sha256": encoder.template_sha256,
    }
    if options.json:
        _print_event("tokenize", facts)
    else:
        _print_facts(facts, options)
    if failures.failed_rows:
        print(f"librarian: {failures.failed_rows} rows FAILED and are not in {options.out}",
              file=sys.stderr)
    return EXIT_DONE


def _start_threads(tokenizer: Any) -> None:
    """Starts the tokenizer's threads so that signals come to the main one, which may be waiting for
    input and would not notice those of others."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    tokenizer.encode_batch(["a", "b"])
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _print_facts(facts: dict[str, Any], options: argparse.Namespace) -> None:
    print(facts["out"])
    lines = [("samples", f"{facts['samples']} (longest {facts['longest_sample']} tokens)"),
             ("tokens", str(facts["tokens"]))]
    if facts["loss_tokens"] is not None:
        share = 100 * facts["loss_tokens"] / facts["tokens"]
        lines.append(("loss tokens", f"{facts['loss_tokens']} ({share:.1f} %)"))
    if options.max_length:
        lines.append(("truncated", f"{facts['truncated_samples']} samples, to "
                                   f"{options.max_length} tokens"))
    lines.append(("failed rows", str(facts["failed_rows"])))
    if options.drop_overlong:
        lines.append(("overlong rows", f"{facts['overlong_rows']} left out"))
    lines.append(("tokenizer sha256", facts["tokenizer_sha256"]))
    if facts["chat_template_sha256"]:
        lines.append(("template sha256", facts["chat_template_sha256"]))
    for name, value in lines:
        print(f"  {name:<20}{value}")


def _decode(options: argparse.Namespace, tokenizer: Any) -> int:
    from .tokenizing.decode import print_marked, read_ids, segments

    ids, mask = read_ids(options.decode, options.sample)
    parts = segments(tokenizer, ids, mask)
    if options.json:
        _print_event("tokenize_decoded", {"sample": options.sample, "tokens": len(ids),
                                          "segments": parts})
    else:
        print_marked(parts, sys.stdout)
    return EXIT_DONE


def _print_event(name: str, fields: dict[str, Any]) -> None:
    print(json.dumps({"event": name, "version": 1, **fields}, ensure_ascii=False))


class _Stopped(BaseException):
    """A signal that asks to stop, so that what was begun is cleaned up."""


def _stop(number: int, _frame: object) -> NoReturn:
    raise _Stopped(EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED)


def _report(message: str, code: int, as_json: bool) -> int:
    names = {EXIT_USAGE: "invalid_argument", EXIT_BAD_INPUT: "bad_input", EXIT_DOES_NOT_FIT: "io"}
    print(f"librarian: {one_line(message, 1000)}", file=sys.stderr)
    if as_json:
        _print_event("error", {"code": names.get(code, "unavailable"), "message": message,
                               "exit_code": code})
    return code


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    for number in _SIGNALS:
        signal.signal(number, _stop)
    # Text of any language comes out, whatever the locale.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    try:
        options = _parser().parse_args(arguments)
        _check_usage(options)
        code = _run(options)
        sys.stdout.flush()
        return code
    except Refusal as refusal:
        return _report(str(refusal), refusal.exit_code, as_json)
    except BrokenPipeError:
        # Who read has enough.
        sys.stdout = None
        return EXIT_DONE
    except OSError as error:
        with contextlib.suppress(OSError):
            sys.stdout.close()  # What is left in its buffer would fail again at the end.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        where = f"{error.filename}: " if error.filename else ""
        fits = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
        return _report(f"{where}{error.strerror or error}",
                       EXIT_DOES_NOT_FIT if fits else EXIT_BAD_INPUT, as_json)
    except _Stopped as stopped:
        return stopped.args[0]


if __name__ == "__main__":
    sys.exit(main())
