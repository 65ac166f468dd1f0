#!/usr/bin/env bash
# On the builder, as root: makes a package of the source archive in /var/tmp/tapfleet, with the toolchain that the source names, and
# removes what that took. Does nothing where the package itself was brought.
set -euo pipefail

cd /var/tmp/tapfleet
shopt -s nullglob
brought=(*.deb *.rpm)
if [ ${#brought[@]} -gt 0 ]; then
  echo "build: ${brought[*]} was brought"
  exit 0
fi

# The packages of this system, by name, in order.
installed() {
  if command -v dpkg-query >/dev/null; then
    dpkg-query --show --showformat='${binary:Package}\n'
  else
    rpm --query --all --queryformat='%{NAME}\n'
  fi | sort -u
}

installed >before
if command -v apt-get >/dev/null; then
  kind=deb
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update
  apt-get -qq install --no-install-recommends build-essential bison ca-certificates curl flex python3-venv
else
  kind=rpm
  dnf --quiet --assumeyes install bison cpio flex gcc gcc-c++ make python3-pip
  dnf --quiet --assumeyes install 'dnf-command(download)'
fi
installed >after

tar -xzf ./*.tar.gz
toolchain=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' tapfleet/Cargo.toml)
export RUSTUP_HOME=$PWD/rustup CARGO_HOME=$PWD/cargo TAPFLEET_CACHE=$PWD/cache CARGO_TARGET_DIR=$PWD/target
curl --proto '=https' --tlsv1.2 --silent --show-error --fail https://sh.rustup.rs |
  sh -s -- -y --quiet --no-modify-path --profile minimal --default-toolchain "$toolchain"
PATH=$CARGO_HOME/bin:$PATH tapfleet/packaging/package.sh
mv target/package/*."$kind" .

mapfile -t added < <(comm -13 before after)
if [ "$kind" = deb ]; then
  apt-get -qq purge "${added[@]}"
else
  dnf --quiet --assumeyes remove "${added[@]}"
fi
rm -rf rustup cargo cache target tapfleet before after ./*.tar.gz
