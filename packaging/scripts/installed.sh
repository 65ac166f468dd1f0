#!/bin/sh
# After installation and upgrade, of .deb and .rpm alike: user, folders, units, kernel and network cards, as a boot would have them. An
# agent that runs goes on with the new program, and its rings with it; one that does not run is not started.
set -e

systemd-sysusers tapfleet.conf
systemd-tmpfiles --create tapfleet.conf

# In an image that is being made nothing runs, and its first boot does the rest. A chroot may see the /run, and would set the kernel, of
# the host that makes it.
if [ ! -d /run/systemd/system ] || systemd-detect-virt --chroot; then
  exit 0
fi
systemctl daemon-reload

# A host that lets nobody set these, as a container, is no reason not to install.
/usr/lib/systemd/systemd-sysctl 60-tapfleet.conf ||
  echo "tapfleet: not every kernel setting of /usr/lib/sysctl.d/60-tapfleet.conf could be made: systemd-sysctl says why above" >&2
if [ -e /run/udev/control ]; then
  # What the rule does for a card that is added it does now for those that are there; nothing happens to a card that is set already.
  { udevadm control --reload && udevadm trigger --action=add --subsystem-match=net --property-match=ID_NET_DRIVER=ena; } ||
    echo "tapfleet: the network cards are not set for capturing before the next boot: udevadm says why above" >&2
fi

systemctl try-restart tapfleet-alert.path tapfleet-alert.timer
# What it lacks is said in its journal and in a mail; the package is installed all the same.
systemctl try-restart tapfleetd.service || echo "tapfleet: the agent did not come back: journalctl -u tapfleetd" >&2
