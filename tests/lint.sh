#!/usr/bin/env bash
# clang-format and clang-tidy over the committed C++ files. Needs the packages clang-format and
# clang-tidy (14), and a configured build/release for the compile commands.
#   tests/lint.sh [FILE...]     all files by default; exit 0: clean
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if (($# > 0)); then files=("$@"); else mapfile -t files < <(git ls-files '*.cc' '*.h'); fi

echo "clang-format: ${#files[@]} files"
clang-format --dry-run -Werror "${files[@]}"

mapfile -t sources < <(printf '%s\n' "${files[@]}" | grep '\.cc$' | grep -v '^tests/fuzz/' || true)
echo "clang-tidy: ${#sources[@]} files"
# The compile commands are GCC's; these flags of theirs are unknown to clang.
printf '%s\n' "${sources[@]}" | xargs -r -P "$(nproc)" -n 1 clang-tidy -quiet -p build/release \
  --extra-arg=-Wno-unknown-warning-option
