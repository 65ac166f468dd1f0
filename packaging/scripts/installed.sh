#!/bin/sh
# After installation and upgrade, of .deb and .rpm alike: user, folders, units. An agent that runs goes on with the new program, and its
# rings with it; one that does not run is not started.
set -e

systemd-sysusers tapfleet.conf
systemd-tmpfiles --create tapfleet.conf
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  systemctl try-restart tapfleet-alert.path tapfleet-alert.timer
  # What it lacks is said in its journal and in a mail; the package is installed all the same.
  systemctl try-restart tapfleetd.service || echo "tapfleet: the agent did not come back: journalctl -u tapfleetd" >&2
fi
