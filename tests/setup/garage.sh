#!/bin/sh
# Builds Garage from crates.io (an S3 that keeps what it has through its own kill -9; AGPL, a program of its own that nothing is linked
# with); does nothing when it is there. In: TAPFLEET_CACHE (default: .cache in the root of the project). Out: the path of the program.
# Needs cargo and a C compiler. Takes about twelve minutes on one processor, which is why only `make soak` asks for it.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${TAPFLEET_CACHE:-$here/../../.cache}
version=2.5.0

say() { echo "garage.sh: $*" >&2; }
fail() { say "$*"; exit 1; }

mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
program=$cache/garage/bin/garage
if command -v flock >/dev/null 2>&1; then
    exec 9>"$cache/garage.lock"
    flock 9
fi

# What was half built is taken up again: only cargo's own record of the version, written last, says that it is done.
if ! grep -qs "\"garage $version " "$cache/garage/.crates.toml" || ! "$program" --version >/dev/null 2>&1; then
    say "building Garage $version into $cache/garage (about twelve minutes)"
    CARGO_TARGET_DIR=$cache/garage/target cargo install garage --version "$version" --locked --force \
        --no-default-features --features bundled-libs,sqlite --root "$cache/garage" >&2 ||
        fail "Garage $version could not be built: is crates.io (or the registry that cargo is set to) reachable, is there a C compiler?"
    rm -rf "$cache/garage/target"
    say "built"
fi
echo "$program"
