"""What can go wrong: one row, or the whole run. Exit codes are those of every librarian command."""

from __future__ import annotations

EXIT_DONE, EXIT_INTERNAL, EXIT_USAGE, EXIT_BAD_INPUT = 0, 1, 2, 3
EXIT_DOES_NOT_FIT, EXIT_REMOTE, EXIT_INTERRUPTED, EXIT_TERMINATED = 5, 6, 130, 143


class RowFailure(Exception):
    """This row cannot become a sample; the sentence says why. The run goes on."""


class Refusal(Exception):
    """The run ends: one sentence that says what, where and what to do."""

    def __init__(self, message: str, exit_code: int = EXIT_BAD_INPUT):
        super().__init__(message)
        self.exit_code = exit_code


def one_line(text: object, characters_max: int = 300) -> str:
    """Text from strangers for a terminal: one printable line that is not too long."""
    line = "".join(c if c.isprintable() else " " for c in str(text)[: characters_max + 1])
    line = " ".join(line.split())
    return line if len(line) <= characters_max else line[:characters_max] + "..."
