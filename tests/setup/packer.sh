#!/usr/bin/env bash
# Prints the path of a packer 1.6: Debian's, the last one with the amazon builders in it, so that it fetches no plugin. A newer one on PATH
# is no hindrance: Debian's package is then unpacked, not installed, into ${TAPFLEET_CACHE:-.cache}/packer. Quick when it is there.
# In: TAPFLEET_CACHE; PATH; the package archive of Debian or Ubuntu, the first time. Out: the path, on standard output.
set -euo pipefail
cd "$(dirname "$0")/../.."

series=1.6
folder=$(realpath -m "${TAPFLEET_CACHE:-.cache}")/packer
export CHECKPOINT_DISABLE=1

is_of_the_series() {
  [[ $("$1" version 2>/dev/null) == "Packer v$series."* ]]
}

find_packer() {
  local candidate
  for candidate in "$(command -v packer || true)" /usr/bin/packer "$folder/usr/bin/packer"; do
    if [ -n "$candidate" ] && is_of_the_series "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

if find_packer; then
  exit 0
fi

mkdir -p "$folder"
# Test programs run side by side, and each may be the first to come here.
exec 9>"$folder.lock"
flock 9
if find_packer; then
  exit 0
fi
echo "packer.sh: no packer $series (found: $(packer version 2>/dev/null | head -n 1 || true)): unpacking Debian's into $folder" >&2
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo -n)
cd "$folder"
rm -rf ./*.deb
# apt checks the package against the archive's signature.
{
  apt-get -qq download "packer=$series.*" || { "${as_root[@]}" apt-get -qq update && apt-get -qq download "packer=$series.*"; }
} >&2 || {
  echo "packer.sh: packer $series cannot be had: not on PATH, not in /usr/bin, and apt finds no packer=$series.* in its archives (Debian 12 has it)" >&2
  exit 1
}
dpkg-deb --extract ./*.deb .
rm -f ./*.deb
find_packer || {
  echo "packer.sh: $folder/usr/bin/packer is there and does not say that it is a packer $series" >&2
  exit 1
}
