#!/usr/bin/env bash
# Fails if a kernel in the object files given as arguments keeps anything in local memory that is
# not declared here, for any architecture inside: a spilled register costs more than it saves.
#   tests/gpu/check_spills.sh CUOBJDUMP OBJECT...
set -euo pipefail

# Bytes of stack that kernels may have, and why.
allowed='
TensorAttention<*,64>  192  sums and weights of add_seen_values(), which is rare: its loops stay loops
TensorAttention<*,80>  224  likewise
TensorAttention<*,96>  256  likewise
TensorAttention<*,128> 320  likewise
TensorAttention<*,256> 544  likewise
RopeTableKernel        40   sine of a large angle; runs once per block
'

(($# >= 2)) || { echo "usage: check_spills.sh CUOBJDUMP OBJECT..."; exit 2; }
cuobjdump="$1"
shift

for object in "$@"; do
  "$cuobjdump" --dump-resource-usage "$object"
done | c++filt | awk -v allowed="$allowed" '
  BEGIN {
    rows = split(allowed, lines, "\n")
    for (i = 1; i <= rows; ++i) {
      if (split(lines[i], words, " ") >= 2) {
        pattern = words[1]
        gsub(/\*/, ".*", pattern)
        limit["^" pattern "$"] = words[2]
      }
    }
  }
  /^arch = / { architecture = $3 }
  /^ Function / {  # Of "Function void run_kernel<X>(X):" the first X.
    name = $0
    gsub(/ |librarian::gpu_exec::/, "", name)
    sub(/^Functionvoidrun_kernel</, "", name)
    if (index(name, ">(") > 0) name = substr(name, 1, index(name, ">(") - 1)
  }
  /^ *REG:/ {
    ++kernels
    match($0, /REG:[0-9]+/); registers = substr($0, RSTART + 4, RLENGTH - 4) + 0
    match($0, /STACK:[0-9]+/); stack = substr($0, RSTART + 6, RLENGTH - 6)
    match($0, /LOCAL:[0-9]+/); bytes = stack + substr($0, RSTART + 6, RLENGTH - 6)
    most = 0
    for (pattern in limit) {
      if (name ~ pattern) most = limit[pattern]
    }
    if (bytes > most + 0) {
      printf "%s %s: %d bytes of local memory, allowed %d\n", architecture, name, bytes, most
      ++failures
    }
    if (registers > registers_most[architecture]) registers_most[architecture] = registers
    ++count[architecture]
  }
  END {
    for (architecture in count) {
      printf "%s: %d kernels, at most %d registers\n", architecture, count[architecture],
             registers_most[architecture]
    }
    if (kernels == 0) print "no kernels found"
    exit (failures > 0 || kernels == 0)
  }'
