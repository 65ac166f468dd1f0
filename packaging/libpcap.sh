#!/usr/bin/env bash
# Makes libpcap.a of the libpcap that this system has the source of, so that one binary runs where libpcap has another soname (Debian's is
# libpcap.so.0.8, Amazon Linux's libpcap.so.1). The distributions' own archive wants D-Bus and more; ours is for packets of the kernel alone.
# In: TAPFLEET_CACHE. Out: the folder of libpcap.a and VERSION, on standard output. Needs a C compiler, flex, bison, and apt's or dnf's sources.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=$(realpath -m "${TAPFLEET_CACHE:-.cache}")
folder=$cache/libpcap
mkdir -p "$cache"
exec 9>"$cache/libpcap.lock"
flock 9
if cmp -s packaging/libpcap.sh "$folder/made-by"; then
  echo "$folder"
  exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "setup: making libpcap.a in $folder (about 20 s)" >&2

# Debian and Ubuntu: the package archives that binaries come from have the sources too. Lists of our own leave the system's alone.
from_apt() {
  local parts=$work/sources.list.d lists=$work/lists list
  mkdir -p "$parts" "$lists/partial" /var/cache/apt/archives/partial 2>/dev/null || true
  for list in /etc/apt/sources.list.d/{debian,ubuntu}.sources; do
    [ ! -f "$list" ] || sed 's/^Types:.*/Types: deb-src/' "$list" >"$parts/$(basename "$list")"
  done
  # The older form, of one line a source.
  [ ! -f /etc/apt/sources.list ] || sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >"$parts/old.list"
  local options=(-qq -o "Dir::Etc::sourcelist=/dev/null" -o "Dir::Etc::sourceparts=$parts" -o "Dir::State::lists=$lists" -o "Dir::Cache::srcpkgcache=" -o "Dir::Cache::pkgcache=" -o "APT::Sandbox::User=root")
  apt-get "${options[@]}" update </dev/null
  (cd "$work" && apt-get "${options[@]}" source --download-only libpcap </dev/null)
  tar -xf "$work"/libpcap_*.orig.tar.?z -C "$work"
}

# Amazon Linux and its like. dnf asks the source repositories by itself.
from_dnf() {
  (cd "$work" && dnf --quiet download --source libpcap </dev/null && rpm2cpio libpcap-*.src.rpm | cpio --quiet -id)
  tar -xf "$work"/libpcap-*.tar.?z -C "$work"
}

if command -v apt-get >/dev/null; then
  from_apt >&2
elif command -v dnf >/dev/null; then
  from_dnf >&2
else
  echo "libpcap.sh: neither apt-get nor dnf is here to get libpcap's source with" >&2
  exit 1
fi

source=$(find "$work" -maxdepth 1 -type d -name 'libpcap-*')
(
  cd "$source"
  ./configure --quiet --disable-shared --disable-dbus --disable-rdma --disable-usb --disable-bluetooth --without-libnl CFLAGS='-O2 -fPIC -g0'
  make --silent libpcap.a
) >"$work/log" 2>&1 || {
  tail -n 30 "$work/log" >&2
  echo "libpcap.sh: libpcap could not be built; flex, bison and a C compiler are needed" >&2
  exit 1
}
rm -rf "$folder"
mkdir "$folder"
cp "$source/VERSION" "$source/libpcap.a" "$folder/"
# Last: it is the sign that all is there, made as it is made now.
cp packaging/libpcap.sh "$folder/made-by"
echo "$folder"
