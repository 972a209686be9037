#!/bin/sh
# Fails if an object file given as argument defines a weak or unique symbol of ours.
[ $# -ge 3 ] || { echo "expected the kernels' object files, got $#"; exit 1; }
status=0
for object in "$@"; do
  symbols=$(nm -C "$object") || exit 1
  if printf '%s\n' "$symbols" | grep -E ' [VWu] ' | grep -v -E ' DW\.ref\.| (asan|tsan|ubsan)\.| __(asan|tsan|ubsan)'; then
    echo "$object: these could replace, or be replaced by, another file's code"
    status=1
  fi
done
exit $status
