#!/usr/bin/env bash
# Everything that needs a GPU, in less than 8 minutes: tests, goldens, stores, sanitizers, benches.
#   tests/gpu/run.sh [OUT_DIR]     default build/gpu-results; figures in OUT_DIR/results.json
# Runs the programs of build/gpu-bundle (tests/gpu/bundle.sh) if they are there, else builds them.
# A step that fails does not stop the others. Exit 0: none failed, or there is no GPU.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
out="${1:-build/gpu-results}"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
rm -f "$out"/*.log "$out"/*.json "$out"/*.jsonl "$out"/*.csv "$out/steps.txt"
filter="$(cat tests/gpu/filter.txt)"
deadline=$((SECONDS + 465))
export CUDA_DEVICE_ORDER=PCI_BUS_ID PYTHONDONTWRITEBYTECODE=1

say() { printf '\n== %s\n' "$*"; }

note() { printf '%s\t%s\t%s\n' "$@" >>"$out/steps.txt"; }

# step NAME SECONDS COMMAND...: runs it, keeps its output, and notes how it ended.
step() {
  local name="$1" limit="$2" begin="$SECONDS" code=0 left=$((deadline - SECONDS))
  shift 2
  ((limit <= left)) || limit="$left"
  say "$name (at most $limit s)"
  if ((limit <= 0)); then
    echo "no time is left"
    note "$name" "failed: no time was left" 0
    return 1
  fi
  timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
  tail -n 25 "$out/$name.log"
  case "$code" in
    0) note "$name" passed "$((SECONDS - begin))" ;;
    124 | 137) note "$name" "failed: ran past $limit s" "$((SECONDS - begin))" ;;
    *) note "$name" "failed: exit code $code" "$((SECONDS - begin))" ;;
  esac
  return "$code"
}

finish() {
  say "Results"
  python3 tests/gpu/results.py "$out"
  exit
}

has_gpu() {
  if command -v nvidia-smi >/dev/null; then
    nvidia-smi -L 2>/dev/null | grep -q '^GPU'
  else
    [[ -e /dev/nvidia0 ]]
  fi
}

# toolkit_file PATTERN: the first file of the CUDA toolkit's folders that there is.
toolkit_file() {
  local root
  for root in "${CUDA_HOME:-}" /usr/local/cuda /usr/local/cuda-*; do
    [[ -n "$root" ]] && compgen -G "$root/$1" && return
  done | head -n 1
}

fields=timestamp,name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem
fields+=,power.draw,power.limit,temperature.gpu,memory.used,memory.total
fields+=,pcie.link.gen.current,pcie.link.width.current
clocks=(nvidia-smi -i 0 "--query-gpu=$fields" --format=csv)
command -v nvidia-smi >/dev/null || clocks=(true)

build() {
  export CUDACXX="${CUDACXX:-$(command -v nvcc || toolkit_file bin/nvcc)}"
  if ! command -v cmake >/dev/null || [[ -z "$CUDACXX" ]]; then
    echo "There is no build/gpu-bundle, and no cmake with nvcc to build with: make the bundle with"
    echo "tests/gpu/bundle.sh where the packages of tests/install.sh are."
    return 1
  fi
  cmake --preset cuda && cmake --build --preset cuda --parallel "$(nproc)" \
    --target librarian gpu_exec_test cuda_bench
}

if [[ -x build/gpu-bundle/librarian ]]; then
  programs="$PWD/build/gpu-bundle"
  librarian="$programs/librarian" tests="$programs/gpu_exec_test" bench="$programs/cuda_bench"
  library="$(cat build/gpu-bundle/toolkit_library)"
  found="$(toolkit_file "lib64/$library")"
  found="${found:-$(toolkit_file "targets/x86_64-linux/lib/$library")}"
  found="${found:-$(PATH="$PATH:/sbin" ldconfig -p 2>/dev/null |
    awk -v name="$library" '$1 == name {print $NF; exit}')}"
  echo "Programs of build/gpu-bundle, with ${found:-no $library in the usual places}"
  if [[ -n "$found" ]]; then
    export LD_LIBRARY_PATH="$(dirname "$found")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  fi
  run_tests=("$tests" "--gtest_filter=$filter")
else
  echo "No build/gpu-bundle: building"
  export -f build toolkit_file
  step build 300 bash -c build || finish
  programs="$PWD/build/cuda"
  librarian="$programs/cli/librarian" tests="$programs/tests/gpu_exec/gpu_exec_test"
  bench="$programs/tests/bench/cuda_bench"
  run_tests=(ctest --test-dir "$programs" -L gpu --output-on-failure --no-tests=error)
fi

if ! has_gpu; then
  say "There is no GPU on this machine: the tests that need one skip themselves, the rest is left out."
  touch "$out/no-gpu.log"
  step tests 60 "${run_tests[@]}"
  finish
fi

"${clocks[@]}" >"$out/clocks-before.csv"
if step tests 70 "${run_tests[@]}" && grep -qi skipped "$out/tests.log"; then
  echo "There is a GPU, but tests skipped themselves"
  note tests_run "failed: tests skipped themselves although there is a GPU" 0
fi
step goldens 110 python3 tests/gpu/goldens.py --librarian "$librarian" --out "$out/goldens.json"
"${clocks[@]}" -l 1 >"$out/clocks-during.csv" &
watcher=$!
step bench 120 bash -c 'set -o pipefail; "$1" | tee "$2"' _ "$bench" "$out/bench.jsonl"
kill "$watcher" 2>/dev/null
if grep -q '"bench": "none"' "$out/bench.jsonl"; then
  note bench_run "failed: nothing was measured although there is a GPU" 0
fi
step stores 120 python3 tests/gpu/stores.py --librarian "$librarian" --out "$out/stores.json"
step overlap 90 python3 tests/bench/overlap.py --librarian "$librarian" --device cuda:0 \
  --hidden 4096 --ffn 14336 --samples 64 --sample-tokens 2048 --capture resid_post@-1 \
  --host-memory 8GiB --out "$out/overlap.json"
sanitizer="$(command -v compute-sanitizer || toolkit_file bin/compute-sanitizer)"
sanitizer="${sanitizer:-$(toolkit_file compute-sanitizer/compute-sanitizer)}"
for tool in memcheck racecheck synccheck; do
  if [[ -n "$sanitizer" ]]; then
    # Our kernels alone: what the library does inside its own is not ours to check.
    step "$tool" 60 "$sanitizer" --tool "$tool" --error-exitcode 9 \
      --kernel-name kns=run_kernel "$tests" "--gtest_filter=$filter"
  else
    note "$tool" "left out: the toolkit has no compute-sanitizer" 0
  fi
done
"${clocks[@]}" >"$out/clocks-after.csv"
finish
