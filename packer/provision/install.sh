#!/usr/bin/env bash
# On the builder, as root: installs the package in /var/tmp/tapfleet and the image's own files beside it. Starts and enables nothing: an
# instance's user data does, when it has mounted the spool and written the settings.
set -euo pipefail

cd /var/tmp/tapfleet
shopt -s nullglob
packages=(*.deb *.rpm)
if [ ${#packages[@]} -ne 1 ]; then
  echo "install: one package is wanted in $PWD, there are ${#packages[@]}: ${packages[*]}" >&2
  exit 1
fi
if [[ ${packages[0]} == *.deb ]]; then
  export DEBIAN_FRONTEND=noninteractive
  # With what it depends on, which is in the image already where it was built there.
  dpkg --install "${packages[0]}" || { apt-get -qq update && apt-get -qq --fix-broken install; }
else
  dnf --quiet --assumeyes install "./${packages[0]}"
fi

# The tree mirrors the disk.
cp --recursive --no-preserve=ownership rootfs/. /
find rootfs -type f -printf '/%P\0' | xargs -0 chmod 0644

# What would ask the internet, which instances of the fleet do not reach: updates are a new image.
for unit in apt-daily.timer apt-daily-upgrade.timer unattended-upgrades.service dnf-makecache.timer dnf-automatic.timer \
  fwupd-refresh.timer motd-news.timer snapd.refresh.timer update-motd.timer ua-timer.timer; do
  ln --symbolic --force /dev/null "/etc/systemd/system/$unit"
done

tapfleetd --version
