#!/usr/bin/env bash
# Makes the root folder of a small Debian with systemd, which the tests boot: ${TAPFLEET_CACHE:-.cache}/machine. Quick when it is there.
# With the argument `builder`, one as EC2's images are when Packer comes: with cloud-init, SSH and what the agent's package depends on.
# In: TAPFLEET_CACHE. Out: the folder's path, on standard output. Needs root, mmdebstrap and Debian's package archive, the first time.
set -euo pipefail
cd "$(dirname "$0")/../.."

name=${1:-machine}
release=bookworm
case $name in
machine) packages=systemd,systemd-sysv,dbus,libpcap0.8,iproute2,ca-certificates ;;
builder) packages=systemd,systemd-sysv,dbus,udev,iproute2,ca-certificates,cloud-init,openssh-server,sudo,ethtool,e2fsprogs ;;
*)
  echo "machine.sh: no machine is called '$name'" >&2
  exit 2
  ;;
esac
cache=$(realpath -m "${TAPFLEET_CACHE:-.cache}")
root=$cache/$name
# Beside the root, not in it: a boot must not change it. Not `$name.nspawn`, which systemd-nspawn would read as settings.
mark=$cache/$name-made-of
want="$release $packages"

mkdir -p "$cache"
# Test programs run side by side, and each may be the first to come here.
exec 9>"$cache/$name.lock"
flock 9
if [ -x "$root/lib/systemd/systemd" ] && [ "$(cat "$mark" 2>/dev/null)" = "$want" ]; then
  echo "$root"
  exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "machine.sh: making a root folder with device nodes and foreign owners needs root" >&2
  exit 1
fi
echo "setup: making a small Debian with systemd in $root (about 20 s)" >&2
rm -rf "$root" "$mark"
# The packages' signatures are checked against Debian's own keys.
mmdebstrap --quiet --variant=minbase --include="$packages" "$release" "$root" >&2 </dev/null
echo "$want" >"$mark"
echo "$root"
