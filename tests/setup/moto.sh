#!/bin/sh
# Installs moto (SNS for the tests: it checks subjects as AWS does, LocalStack does not) into a Python environment of the project's
# own; does nothing when it is there. In: TAPFLEET_CACHE (default: .cache in the root of the project). Out: the path of its python.
# Needs python3, 3.11 or later, with venv.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${TAPFLEET_CACHE:-$here/../../.cache}
pins=$here/moto-requirements.txt

say() { echo "moto.sh: $*" >&2; }
fail() { say "$*"; exit 1; }

mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
venv=$cache/moto
done_mark=$venv/installed-requirements.txt
# Test programs run side by side, and each may be the first to come here.
if command -v flock >/dev/null 2>&1; then
    exec 9>"$cache/moto.lock"
    flock 9
fi

if ! cmp -s "$pins" "$done_mark" || ! "$venv/bin/python" -c '' >/dev/null 2>&1; then
    say "installing $(grep -c '==' "$pins") Python packages ($(grep '^moto==' "$pins")) into $venv"
    rm -rf "$venv"
    python3 -m venv "$venv" || fail "'python3 -m venv' failed: on Debian and Ubuntu the package python3-venv is missing"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --requirement "$pins" >&2 ||
        fail "pip could not install $pins: is PyPI (or the index that pip is set to) reachable?"
    cp "$pins" "$done_mark"
    say "installed"
fi
echo "$venv/bin/python"
