#!/bin/sh
# Installs LocalStack (S3 for the tests) into a Python environment of the project's own; does nothing when it is there.
# In: TAPFLEET_CACHE (default: .cache in the root of the project). Out: the path of its python, on standard output.
# Needs CPython 3.13: from PATH, from pyenv, or from uv, which is had from PyPI for the purpose where it is missing (Debian 12 and
# Ubuntu 24.04 have no 3.13). Python 3.11 cannot parse LocalStack, 3.12 finds none of its plugins.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${TAPFLEET_CACHE:-$here/../../.cache}
pins=$here/localstack-requirements.txt
uv_version=0.13.9

say() { echo "localstack.sh: $*" >&2; }
fail() { say "$*"; exit 1; }

# A name on PATH may be a pyenv shim that only says "command not found": ask it to run.
is_python_313() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13) or sys.implementation.name != "cpython")' >/dev/null 2>&1
}

# Prints the path of a CPython 3.13 that is here.
find_python() {
    for candidate in python3.13 python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13*/bin/python "$cache"/python/cpython-3.13*/bin/python3.13; do
        if is_python_313 "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    command -v uv >/dev/null 2>&1 && candidate=$(UV_PYTHON_DOWNLOADS=never uv python find 3.13 2>/dev/null) &&
        is_python_313 "$candidate" && echo "$candidate"
}

# Downloads a CPython 3.13 into $cache/python, where find_python sees it; nothing is put into the home folder. Fails with what uv said.
fetch_python() {
    say "no CPython 3.13 on PATH or in ${PYENV_ROOT:-$HOME/.pyenv}: installing one into $cache/python, with uv"
    uv=uv
    if ! command -v uv >/dev/null 2>&1; then
        uv=$cache/uv/bin/uv
        rm -rf "$cache/uv"
        { python3 -m venv "$cache/uv" && "$cache/uv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version"; } >&2 || return 1
    fi
    status=0
    UV_PYTHON_INSTALL_DIR=$cache/python UV_CACHE_DIR=$cache/uv/cache "$uv" python install --no-bin --no-progress 3.13 >&2 || status=$?
    rm -rf "$cache/uv"
    return "$status"
}

mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
venv=$cache/localstack
done_mark=$venv/installed-requirements.txt
# Test programs run side by side, and each may be the first to come here.
if command -v flock >/dev/null 2>&1; then
    exec 9>"$cache/localstack.lock"
    flock 9
fi

if ! cmp -s "$pins" "$done_mark" || ! is_python_313 "$venv/bin/python"; then
    python=$(find_python || { fetch_python && find_python; }) ||
        fail "CPython 3.13 is missing and could not be had: not on PATH (python3.13, python3), not in ${PYENV_ROOT:-$HOME/.pyenv}/versions/3.13*," \
            "not by uv (above). LocalStack, the S3 of the tests and the demo, needs it: install it, for instance with 'pyenv install 3.13'."
    say "installing $(grep -c '==' "$pins") Python packages for LocalStack ($(grep '^localstack-core' "$pins")) into $venv, with $python"
    rm -rf "$venv"
    "$python" -m venv "$venv" || fail "'$python -m venv' failed: on Debian and Ubuntu the package python3.13-venv is missing"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --requirement "$pins" >&2 ||
        fail "pip could not install $pins: is PyPI (or the index that pip is set to) reachable?"
    cp "$pins" "$done_mark"
    say "installed"
fi
echo "$venv/bin/python"
