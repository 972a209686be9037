#!/usr/bin/env bash
# Builds Librarian and runs every test: C++ (ctest), then Python (pytest) against the built binary.
# Where a CUDA compiler is found, the CUDA build is compiled as well (it needs no GPU for that).
#   tests/run.sh        exit 0: everything built and passed
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
jobs="$(nproc)"

say() { printf '\n== %s\n' "$*"; }

has_preset() { cmake --list-presets | grep -q "\"$1\""; }

find_nvcc() {
  command -v nvcc || { [[ -x /usr/local/cuda/bin/nvcc ]] && echo /usr/local/cuda/bin/nvcc; }
}

say "What the build needs"
bash tests/install.sh tests/requirements.txt

say "Build (preset release)"
cmake --preset release
cmake --build --preset release --parallel "$jobs"

say "C++ tests"
ctest --preset release --parallel "$jobs" --output-on-failure

say "Python tests"
export LIBRARIAN_BIN="${LIBRARIAN_BIN:-$PWD/build/release/cli/librarian}"
build/venv/bin/python -m pytest -q tests

say "Python tests with torch (Debian's)"
/usr/bin/python3 -m pytest -q -p no:cacheprovider tests/python_torch

if nvcc="$(find_nvcc)" && has_preset cuda; then
  say "CUDA build (preset cuda, $nvcc)"
  CUDACXX="$nvcc" cmake --preset cuda
  cmake --build --preset cuda --parallel "$jobs" --target librarian gpu_exec_test
  say "CUDA tests (those that need a GPU skip themselves where there is none)"
  ctest --test-dir build/cuda -L "gpu|cuda" --output-on-failure
fi

say "All passed"
