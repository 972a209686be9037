"""Makes nexus_librarian importable: the build's, else the sources, which lack the decoder."""

import os
import pathlib
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
_BINARY = pathlib.Path(os.environ.get("LIBRARIAN_BIN", REPOSITORY / "build/release/cli/librarian"))
_BUILT = _BINARY.resolve().parents[1] / "python"
PACKAGE_PATH = _BUILT if (_BUILT / "nexus_librarian").is_dir() else (
    REPOSITORY / "activation_store/python")

if str(PACKAGE_PATH) not in sys.path:
    sys.path.insert(0, str(PACKAGE_PATH))
