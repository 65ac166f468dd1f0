#!/bin/sh
# Before removal: "remove" from dpkg, 0 from rpm. At an upgrade there is nothing to do.
set -e

case "${1:-}" in
  remove | 0) ;;
  *) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
  systemctl stop tapfleetd-revive.timer tapfleetd.service tapfleet-alert.path tapfleet-alert.timer tapfleet-alert.service
fi
systemctl --quiet disable tapfleetd.service
