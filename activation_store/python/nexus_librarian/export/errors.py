"""Failures that end an export, with the exit codes of the program librarian."""

from __future__ import annotations

USAGE, BAD_INPUT, FOREIGN_OUTPUT, DOES_NOT_FIT, DAMAGED = 2, 3, 4, 5, 7


class ExportError(Exception):
    """One sentence: what, where, what to do."""

    def __init__(self, exit_code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code
