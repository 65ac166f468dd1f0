#!/usr/bin/env bash
# Installs what the benchmark runs the agent against, on Debian and Ubuntu, and prints where the AWS CLI is. Quick when nothing is missing.
# In: TAPFLEET_CACHE (default: .cache in the root of the project). Out: the path of `aws`, on standard output.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${TAPFLEET_CACHE:-$here/../../.cache}

"$here/system.sh" bench >&2

# A virtual environment of its own: what the CLI needs is pinned with it.
pins=$here/bench-requirements.txt
venv=$cache/bench
if ! cmp -s "$pins" "$venv/installed-requirements.txt"; then
  echo "bench.sh: installing $(grep '^awscli' "$pins") into $venv" >&2
  rm -rf "$venv"
  mkdir -p "$cache"
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --requirement "$pins" >&2
  cp "$pins" "$venv/installed-requirements.txt"
fi
echo "$venv/bin/aws"
