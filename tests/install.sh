#!/usr/bin/env bash
# Installs what building and testing need, on Debian 12 or a relative of it, if it is missing.
#   tests/install.sh [REQUIREMENTS.txt]    system packages; then build/venv with these Python packages
# Does nothing, quickly, when all is there. Needs root or sudo only when a package is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(
  g++ cmake ninja-build ccache git pkg-config python3 python3-venv python3-dev
  libcurl4-openssl-dev libzstd-dev libtbb-dev libboost-dev libboost-context-dev libgtest-dev
  libgmock-dev nlohmann-json3-dev libcli11-dev libtomlplusplus-dev libspdlog-dev libfmt-dev
  libexpected-dev libssl-dev libxxhash-dev libbenchmark-dev openssl
)
# What only tests need.
[[ "${1:-}" != tests/* ]] || packages+=(nginx python3-pytest python3-torch python3-matplotlib)

as_root=()
((EUID == 0)) || as_root=(sudo)

is_installed() {
  [[ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null)" == ii* ]]
}

install_system_packages() {
  if ! command -v dpkg-query >/dev/null; then
    echo "Not a Debian system: please install the equivalents of: ${packages[*]}"
    return
  fi
  local missing=() package
  for package in "${packages[@]}"; do
    is_installed "$package" || missing+=("$package")
  done
  if ((${#missing[@]} == 0)); then
    echo "System packages: all ${#packages[@]} are installed."
    return
  fi
  echo "Installing with apt-get: ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  # The tests start an nginx of their own; the package must not start one, now or at the next boot.
  local has_nginx=yes
  [[ " ${missing[*]} " != *" nginx "* ]] || has_nginx=
  [[ -n "$has_nginx" ]] || forbid_service_starts
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
  [[ -n "$has_nginx" ]] || "${as_root[@]}" update-rc.d nginx disable
}

# Until this script ends, packages do not start their services.
forbid_service_starts() {
  [[ ! -e /usr/sbin/policy-rc.d ]] || return 0
  trap '"${as_root[@]}" rm -f /usr/sbin/policy-rc.d' EXIT
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee /usr/sbin/policy-rc.d >/dev/null
  "${as_root[@]}" chmod 755 /usr/sbin/policy-rc.d
}

# The stamp holds what was asked for last time, so an unchanged list costs no call of pip.
install_python_packages() {
  local requirements="$1" venv=build/venv stamp wanted
  stamp="$venv/installed-${requirements//\//-}"
  wanted="$(cat examples/requirements.txt "$requirements")"
  if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then
    echo "Python packages: $venv is up to date."
    return
  fi
  echo "Installing the Python packages of $requirements into $venv"
  [[ -x "$venv/bin/python" ]] || python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
  echo "$wanted" >"$stamp"
}

install_system_packages
if (($# > 0)); then
  install_python_packages "$1"
fi
