"""The folder that an export fills: what it is of, which files are whole, who writes it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from typing import Any, BinaryIO, Iterator

from .errors import DOES_NOT_FIT, FOREIGN_OUTPUT, ExportError

MANIFEST = "export.json"
_VERSION = 1
_PROGRESS_SECONDS = 10


class Output:
    """A folder and its export.json: {"librarian_export": 1, settings..., "skipped", "complete"}.

    One process at a time: the folder itself carries the lock, which ends with the process.
    """

    def __init__(self, folder: str, settings: dict[str, Any]) -> None:
        """
        @param settings  Everything that decides the files' content. A folder of other settings is
                         refused with the names of those that differ.
        @raise ExportError  Another export's folder, somebody's files, or busy (exit code 4).
        """
        self.folder = folder
        self._settings = {"librarian_export": _VERSION, **settings}
        os.makedirs(folder, exist_ok=True)
        self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._take()
        except BaseException:
            self.close()
            raise

    def _take(self) -> None:
        folder = self.folder
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportError(FOREIGN_OUTPUT, f"{folder}: another export writes there; wait for it or "
                              "take another --out") from None
        self.skipped: list[dict[str, Any]] = []
        self.complete = False
        path = self.path(MANIFEST)
        if not os.path.exists(path):
            if any(name != _temporary(MANIFEST) for name in os.listdir(folder)):
                raise ExportError(FOREIGN_OUTPUT, f"{folder}: not empty and without {MANIFEST}, so no "
                                  "export made it; take another --out")
            self._save()
            return
        try:
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
            self.skipped, self.complete = found.pop("skipped"), found.pop("complete")
        except (ValueError, KeyError, AttributeError):
            raise ExportError(FOREIGN_OUTPUT, f"{path}: not the manifest of an export; take another "
                              "--out") from None
        differing = sorted(name for name in found.keys() | self._settings.keys()
                           if found.get(name) != self._settings.get(name))
        if differing:
            raise ExportError(FOREIGN_OUTPUT, f"{folder}: made of another store or with other options "
                              f"({', '.join(differing)} differ); take another --out or remove it")

    def close(self) -> None:
        """Ends the lock."""
        os.close(self._lock)

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def has(self, name: str) -> bool:
        """True if a file is there; files appear whole."""
        return os.path.exists(self.path(name))

    def skip(self, sample: int, reason: str) -> None:
        """Put a sample on the list of those left out; durable before any later file."""
        self.skipped.append({"sample": sample, "reason": reason})
        self._save()

    def finish(self) -> None:
        """Every file is there."""
        self.complete = True
        self._save()

    def _save(self) -> None:
        with self.new_file(MANIFEST) as file:
            file.write(json.dumps({**self._settings, "skipped": self.skipped,
                                   "complete": self.complete}, indent=1).encode() + b"\n")

    @contextlib.contextmanager
    def new_file(self, name: str) -> Iterator[BinaryIO]:
        """A file to write and seek in; when the block ends without an exception it gets its name."""
        path = self.path(name)
        folder, last = os.path.split(path)
        os.makedirs(folder, exist_ok=True)
        temporary = os.path.join(folder, _temporary(last))
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fdatasync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        _sync_folder(folder)

    def check_room(self, wanted_bytes: int) -> None:
        """@raise ExportError  The file system has less than this free (exit code 5)."""
        facts = os.statvfs(self.folder)
        free_bytes = facts.f_bavail * facts.f_frsize
        if wanted_bytes > free_bytes:
            raise ExportError(DOES_NOT_FIT, f"{self.folder}: the files still to write take "
                              f"{wanted_bytes / 2**30:.2f} GiB and {free_bytes / 2**30:.2f} GiB are "
                              "free; take fewer captures or samples, or another disk")


class Progress:
    """Lines on standard error: one that changes on a terminal, else one every ten seconds."""

    def __init__(self, what: str, samples: int) -> None:
        self._what, self._samples = what, samples
        self._began = self._said = time.monotonic()
        self._bytes = 0
        self._terminal = sys.stderr.isatty()

    def step(self, samples_done: int, new_bytes: int) -> None:
        self._bytes += new_bytes
        now = time.monotonic()
        if now - self._said < (0.2 if self._terminal else _PROGRESS_SECONDS):
            return
        self._said = now
        mb_per_second = self._bytes / 1e6 / max(now - self._began, 1e-9)
        line = (f"{self._what}: {samples_done} of {self._samples} samples, "
                f"{mb_per_second:.0f} MB/s")
        sys.stderr.write("\r\x1b[K" + line if self._terminal else line + "\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _temporary(name: str) -> str:
    return f".{name}.tmp"


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
