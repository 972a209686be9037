#!/usr/bin/env bash
# Builds the CUDA programs and collects what they need in build/gpu-bundle, to be carried to a
# machine that has a GPU and the CUDA toolkit but none of the packages that building needs.
#   tests/gpu/bundle.sh        needs what tests/install.sh installs, and nvcc
# Not inside: glibc, and cuBLASLt, which is large and comes with the toolkit there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bundle=build/gpu-bundle
bytes_max=$((64 << 20))
programs=(cli/librarian tests/gpu_exec/gpu_exec_test tests/bench/cuda_bench)

if [[ -z "${CUDACXX:-}" ]] && ! command -v nvcc >/dev/null; then
  export CUDACXX=/usr/local/cuda/bin/nvcc
fi
# DT_RPATH, not RUNPATH: libraries find each other by it, too.
cmake --preset cuda -DLIBRARIAN_BUILD_TESTS=ON -DLIBRARIAN_BUILD_BENCH=ON \
  "-DCMAKE_BUILD_RPATH=\$ORIGIN/lib" "-DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags"
cmake --build --preset cuda --parallel "$(nproc)" --target "${programs[@]##*/}"

rm -rf "$bundle"
mkdir -p "$bundle/lib"
for program in "${programs[@]}"; do
  strip -o "$bundle/${program##*/}" "build/cuda/$program"
done
for program in "${programs[@]}"; do ldd "build/cuda/$program"; done | sort -u |
  while read -r name _ path _; do
    case "$name" in
      linux-vdso.* | */ld-linux* | libc.so.* | libm.so.* | libpthread.so.* | libdl.so.* | \
        librt.so.* | libresolv.so.*) ;;
      libcublasLt.so.*) echo "$name" >"$bundle/toolkit_library" ;;
      *)
        [[ "$path" == /* ]] || { echo "$name: not found"; exit 1; }
        [[ -e "$bundle/lib/$name" ]] || strip -o "$bundle/lib/$name" "$path"
        ;;
    esac
  done

bytes="$(du -sb "$bundle" | cut -f1)"
echo "$bundle: $((bytes >> 10)) KiB, $(find "$bundle/lib" -type f | wc -l) libraries," \
  "glibc $(getconf GNU_LIBC_VERSION | cut -d' ' -f2) or newer and" \
  "$(cat "$bundle/toolkit_library") are needed there"
((bytes < bytes_max)) || { echo "above $((bytes_max >> 20)) MiB"; exit 1; }
