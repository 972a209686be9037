#!/usr/bin/env bash
# clang-format and clang-tidy over the committed C++ files. Needs the packages clang-format and
# clang-tidy (14), and a configured build/release for the compile commands; files that are built with
# CUDA alone need build/cuda, and are left out, by name, without it.
#   tests/lint.sh [FILE...]     all files by default; exit 0: clean
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if (($# > 0)); then files=("$@"); else mapfile -t files < <(git ls-files '*.cc' '*.h'); fi

echo "clang-format: ${#files[@]} files"
clang-format --dry-run -Werror "${files[@]}"

mapfile -t sources < <(printf '%s\n' "${files[@]}" | grep '\.cc$' | grep -v '^tests/fuzz/' || true)
echo "clang-tidy: ${#sources[@]} files"
# The compile commands are GCC's; these flags of theirs are unknown to clang.
for build in build/release build/cuda; do
  later=() now=()
  for source in "${sources[@]}"; do
    if grep -qsF "$PWD/$source\"" "$build/compile_commands.json"; then
      now+=("$source")
    else
      later+=("$source")
    fi
  done
  if ((${#now[@]} > 0)); then
    printf '%s\0' "${now[@]}" | xargs -0 -P "$(nproc)" -n 1 clang-tidy -quiet -p "$build" \
      --extra-arg=-Wno-unknown-warning-option
  fi
  sources=("${later[@]}")
done
if ((${#sources[@]} > 0)); then
  echo "not built, so not looked at: ${sources[*]}"
fi
