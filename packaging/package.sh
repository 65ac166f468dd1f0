#!/usr/bin/env bash
# Makes the .deb and the .rpm of this source for this machine's processor, and prints their paths. Quick when nothing has changed.
# In: CARGO_TARGET_DIR, TAPFLEET_CACHE; TAPFLEET_VERSION and TAPFLEET_PACKAGES (folder), if not the commit's and target/package.
# Needs cargo and what libpcap.sh, nfpm.sh and version.sh need.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
packages=$(realpath -m "${TAPFLEET_PACKAGES:-$target/package}")
TAPFLEET_CACHE=$(realpath -m "${TAPFLEET_CACHE:-.cache}")
export TAPFLEET_CACHE

read -r version _ seconds < <(packaging/version.sh)
TAPFLEET_VERSION=${TAPFLEET_VERSION:-$version}
case $(uname -m) in
x86_64) TAPFLEET_ARCH=amd64 ;;
aarch64) TAPFLEET_ARCH=arm64 ;;
*)
  echo "package.sh: no package is made for $(uname -m): x86_64 and aarch64 are what EC2 has" >&2
  exit 1
  ;;
esac
export TAPFLEET_ARCH TAPFLEET_VERSION TAPFLEET_PROGRAMS=$target/release

libpcap=$(packaging/libpcap.sh)
nfpm=$(packaging/nfpm.sh)
LIBPCAP_LIBDIR=$libpcap LIBPCAP_VER=$(cat "$libpcap/VERSION") CARGO_TARGET_DIR=$target \
  nice cargo build --quiet --release --locked -p tapfleet -p tapfleet-operator >&2

# The time of every file in the packages. Not for the compiler: crates with C in them, and all above them, would be built anew with it.
export SOURCE_DATE_EPOCH=$seconds
# Whole or not at all: another may be reading the ones that are there.
mkdir -p "$packages"
work=$(mktemp -d --tmpdir="$packages")
trap 'rm -rf "$work"' EXIT
for packager in deb rpm; do
  "$nfpm" package --config packaging/nfpm.yaml --packager "$packager" --target "$work/" >&2
done
find "$packages" -maxdepth 1 \( -name 'tapfleet*.deb' -o -name 'tapfleet*.rpm' \) -delete
mv "$work"/* "$packages/"
ls "$packages"/tapfleet*.{deb,rpm}
