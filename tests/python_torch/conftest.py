"""Tests that need torch: run by Debian's Python, which has python3-torch, or any other with torch."""

import importlib.util
import os
import pathlib
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("LIBRARIAN_BUILD_DIR", REPOSITORY / "build/release"))
sys.path[:0] = [str(BUILD / "python")]

if importlib.util.find_spec("torch") is None:
    collect_ignore_glob = ["test_*.py"]
