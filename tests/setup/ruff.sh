#!/usr/bin/env bash
# Installs ruff, which lints and formats the Python of the tests, into an environment of the project's own; does nothing when it is there.
# In: TAPFLEET_CACHE (default: .cache in the root of the project). Out: the path of ruff, on standard output.
set -euo pipefail
cd "$(dirname "$0")/../.."

version=0.17.6
venv=$(realpath -m "${TAPFLEET_CACHE:-.cache}")/ruff
mkdir -p "$venv"
exec 9>"$venv.lock"
flock 9

if [ "$("$venv/bin/ruff" --version 2>/dev/null)" != "ruff $version" ]; then
  echo "setup: installing ruff $version into $venv" >&2
  rm -rf "$venv"
  { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check "ruff==$version"; } >&2 || {
    echo "ruff.sh: pip could not install ruff $version: is PyPI (or the index that pip is set to) reachable?" >&2
    exit 1
  }
fi
echo "$venv/bin/ruff"
