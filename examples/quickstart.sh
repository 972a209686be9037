#!/usr/bin/env bash
# From a fresh Debian 12 to activations on disk: builds Librarian, makes a teacher of 246 million
# parameters, serves it over HTTP on this machine, streams it layer by layer over a short text, and
# reads the result with zarr-python. Everything it writes is under build/.
#   examples/quickstart.sh      run it again: what is there is kept, a finished extraction stays
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=build/quickstart
librarian=build/release/cli/librarian
python=build/venv/bin/python
server_pid=""

say() { printf '\n== %s\n' "$*"; }
show_and_run() {
  printf '$ %s\n' "$*"
  "$@"
}

stop_server() {
  if [[ -n "$server_pid" ]]; then
    kill "$server_pid" 2>/dev/null || true
    wait "$server_pid" 2>/dev/null || true
  fi
}
trap stop_server EXIT

say "1. What the build needs"
bash tests/install.sh examples/requirements.txt

say "2. Build"
cmake --preset release
cmake --build --preset release --parallel "$(nproc)" --target cli/librarian
"$librarian" --version

say "3. A teacher with random weights, and a text in bytes"
mkdir -p "$work"
if [[ ! -d "$work/teacher" ]]; then
  # Made under another name, so that an interrupted run leaves no half of a teacher.
  rm -rf "$work/teacher.partial"
  "$python" examples/make_teacher.py "$work/teacher.partial"
  mv "$work/teacher.partial" "$work/teacher"
else
  echo "$work/teacher is there already."
fi
"$python" examples/tokenize_bytes.py examples/text/*.txt --out "$work/tokens.safetensors"

say "4. The teacher behind HTTP"
rm -f "$work/port"
"$python" examples/range_server.py "$work" --port-file "$work/port" --log "$work/requests.log" &
server_pid=$!
for _ in {1..100}; do
  [[ -s "$work/port" ]] && break
  kill -0 "$server_pid"  # The server gave up: so do we.
  sleep 0.1
done
model="http://127.0.0.1:$(cat "$work/port")/teacher/"
job=("$model" --tokens "$work/tokens.safetensors"
  --capture 'resid_post@all,final.post_norm' --host-memory 1GiB)

say "5. What would happen"
show_and_run "$librarian" plan "${job[@]}"

say "6. Extract: each layer is fetched once, run over all samples, and dropped"
show_and_run "$librarian" extract "${job[@]}" --out "$work/acts"

say "7. What came out"
show_and_run "$librarian" inspect "$work/acts"
show_and_run "$librarian" verify "$work/acts"

say "8. The same through zarr-python"
show_and_run "$python" examples/show_activations.py "$work/acts"

say "Done: the activations are in $work/acts"
