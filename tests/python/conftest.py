"""Fixtures: the built program, and HTTP servers that end with the test."""

import os
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests" / "python"), str(REPOSITORY / "examples")]

from fault_server import FaultServer  # noqa: E402  (needs the path above)

COMMAND_SECONDS_MAX = 120


@pytest.fixture(scope="session")
def librarian_binary():
    """Path of the program: $LIBRARIAN_BIN, else the release build."""
    asked = os.environ.get("LIBRARIAN_BIN")
    binary = pathlib.Path(asked) if asked else REPOSITORY / "build/release/cli/librarian"
    if not binary.is_file():
        if asked:
            pytest.fail(f"LIBRARIAN_BIN={asked} is not a file")
        pytest.skip(f"{binary} is not built")
    return binary.resolve()


@pytest.fixture(scope="session")
def librarian(librarian_binary):
    """librarian("inspect", folder, ...) -> CompletedProcess with text output.

    By default an exit code other than 0 fails the test with what the program said;
    `exit_code=None` accepts any, another number expects that one.
    """

    def run(*arguments, exit_code=0, timeout=COMMAND_SECONDS_MAX, **options):
        command = [str(librarian_binary), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
        if exit_code is not None and done.returncode != exit_code:
            pytest.fail(f"exit code {done.returncode}, expected {exit_code}: {' '.join(command)}\n"
                        f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done

    return run


@pytest.fixture
def serve():
    """serve(directory, faults=[...], bytes_per_second=...) -> a running FaultServer."""
    servers = []

    def start(directory, **options):
        servers.append(FaultServer(directory, **options).start())
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
