#!/usr/bin/env bash
# Installs the system packages that building, testing and the demo use, on Debian and Ubuntu. Quick and silent when nothing is missing.
# With `package`, also what making packages takes; with `image`, what the tests of packages and of the machine image take; with `bench`,
# what the benchmark runs beside the agent.
set -euo pipefail

# package | how to see that it is there
needs='
build-essential | command -v cc && command -v c++
libpcap-dev     | ls /usr/include/pcap/pcap.h
python3         | command -v python3
python3-venv    | python3 -c "import venv, ensurepip"
iproute2        | command -v ip
e2fsprogs       | command -v mkfs.ext4
iputils-ping    | command -v ping
curl            | command -v curl
strace          | command -v strace
tcpdump         | command -v tcpdump
tshark          | command -v tshark && command -v capinfos && command -v editcap
zstd            | command -v zstd
mmdebstrap      | command -v mmdebstrap
systemd-container | command -v systemd-nspawn
debian-archive-keyring | ls /usr/share/keyrings/debian-archive-keyring.gpg
shellcheck      | command -v shellcheck
'
for more in "$@"; do
  case $more in
  bench) needs+='
netsniff-ng     | command -v netsniff-ng
rclone          | command -v rclone
valgrind        | command -v valgrind
' ;;
  package) needs+='
flex            | command -v flex
bison           | command -v bison
' ;;
  image) needs+='
binutils        | command -v readelf
cpio            | command -v cpio
createrepo-c    | command -v createrepo_c
dnf             | command -v dnf
openssh-client  | command -v ssh-keygen
rpm             | command -v rpm && command -v rpm2cpio
' ;;
  esac
done

# Plain users often lack the folder of `ip` and `tcpdump`.
PATH="$PATH:/usr/sbin:/sbin"

# Prints the packages of `needs` whose sign is not seen.
missing() {
  local package sign
  while IFS='|' read -r package sign; do
    package=${package// /}
    [ -z "$package" ] || bash -c "$sign" >/dev/null 2>&1 || echo "$package"
  done <<<"$needs"
}

mapfile -t want < <(missing)
[ ${#want[@]} -eq 0 ] && exit 0

echo "setup: installing system packages: ${want[*]}"
if ! command -v apt-get >/dev/null; then
  echo "setup: no apt-get here; install by hand what these Debian packages hold: ${want[*]}" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "setup: not root, and no sudo; have an administrator run: apt-get install ${want[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" </dev/null >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    echo "setup: 'apt-get $*' failed" >&2
    return 1
  }
}
apt update || echo "setup: trying with the package lists that are here" >&2
# One after the other when together they fail, so that what cannot be had is named and the rest is there.
if ! apt install -y --no-install-recommends "${want[@]}"; then
  for package in "${want[@]}"; do
    apt install -y --no-install-recommends "$package" || true
  done
fi

mapfile -t still < <(missing)
if [ ${#still[@]} -gt 0 ]; then
  echo "setup: could not be had: ${still[*]}" >&2
  exit 1
fi
