#!/bin/sh
# Installs LocalStack (S3 for the tests) into a Python environment of the project's own; does nothing when it is there.
# In: TAPFLEET_CACHE (default: .cache in the root of the project). Out: the path of its python, on standard output.
# Needs CPython 3.13: from PATH, from pyenv, or had by uv. Python 3.11 cannot parse LocalStack, 3.12 finds none of its plugins.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${TAPFLEET_CACHE:-$here/../../.cache}
pins=$here/localstack-requirements.txt

say() { echo "localstack.sh: $*" >&2; }
fail() { say "$*"; exit 1; }

# A name on PATH may be a pyenv shim that only says "command not found": ask it to run.
is_python_313() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13) or sys.implementation.name != "cpython")' >/dev/null 2>&1
}

find_python() {
    for candidate in python3.13 python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13*/bin/python; do
        if is_python_313 "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    if command -v uv >/dev/null 2>&1 && candidate=$(uv python find 3.13 2>/dev/null || { uv python install 3.13 >&2 && uv python find 3.13; }) &&
        is_python_313 "$candidate"; then
        echo "$candidate"
        return
    fi
    fail "CPython 3.13 is missing: looked for python3.13 and python3 on PATH, for ${PYENV_ROOT:-$HOME/.pyenv}/versions/3.13*, and for uv." \
        "Install one of them, for instance with 'pyenv install 3.13' or 'pip install uv'."
}

mkdir -p "$cache"
venv=$(cd "$cache" && pwd)/localstack
done_mark=$venv/installed-requirements.txt
# Test programs run side by side, and each may be the first to come here.
if command -v flock >/dev/null 2>&1; then
    exec 9>"$cache/localstack.lock"
    flock 9
fi

if ! cmp -s "$pins" "$done_mark" || ! is_python_313 "$venv/bin/python"; then
    python=$(find_python)
    say "installing $(grep -c '==' "$pins") Python packages for LocalStack ($(grep '^localstack-core' "$pins")) into $venv, with $python"
    rm -rf "$venv"
    "$python" -m venv "$venv" || fail "'$python -m venv' failed: on Debian and Ubuntu the package python3.13-venv is missing"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --requirement "$pins" >&2 ||
        fail "pip could not install $pins: is PyPI (or the index that pip is set to) reachable?"
    cp "$pins" "$done_mark"
    say "installed"
fi
echo "$venv/bin/python"
