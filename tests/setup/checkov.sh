#!/usr/bin/env bash
# Installs checkov into a Python environment of the project's own; does nothing when it is there.
# In: TAPFLEET_CACHE (default: .cache in the root of the project). Out: the path of checkov, on standard output.
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=$(realpath -m "${TAPFLEET_CACHE:-.cache}")/checkov
pins=tests/setup/checkov-requirements.txt
mkdir -p "$venv"
exec 9>"$venv.lock"
flock 9

if ! cmp -s "$pins" "$venv/installed-requirements.txt"; then
  echo "setup: installing $(grep -c == "$pins") Python packages for $(grep '^checkov' "$pins") into $venv" >&2
  rm -rf "$venv"
  { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$pins"; } >&2 || {
    echo "checkov.sh: pip could not install $pins: is PyPI (or the index that pip is set to) reachable, and Python at least 3.9?" >&2
    exit 1
  }
  cp "$pins" "$venv/installed-requirements.txt"
fi
echo "$venv/bin/checkov"
