#!/usr/bin/env bash
# On the builder, as root, last: looks for what clean.sh should have removed and for what an instance needs, and fails with every finding.
# In: TAPFLEET_VERSION, which the agent's package must have.
set -uo pipefail
shopt -s nullglob

findings=0
wrong() {
  echo "not clean: $*" >&2
  findings=$((findings + 1))
}

# Names a path that is there and must not be.
gone() {
  local path
  for path in "$@"; do
    [ ! -e "$path" ] || wrong "$path is there"
  done
}
gone /etc/ssh/ssh_host_* /root/.ssh/authorized_keys* /home/*/.ssh/authorized_keys* /{root,home/*}/.{bash_history,python_history,lesshst,viminfo} \
  /{root,home/*}/.{aws,cargo,rustup} /var/lib/cloud/* /var/lib/systemd/random-seed /var/lib/systemd/credential.secret /var/lib/dhcp/* \
  /var/lib/amazon/ssm/* /var/lib/tapfleet/* /var/log/journal/* /var/tmp/tapfleet
while read -r path; do
  wrong "$path is left of the building"
done < <(find /tmp /var/tmp -xdev -type f ! -path "$0")
while read -r path; do
  wrong "$path has lines of the builder"
done < <(find /var/log -type f -size +0)
if ! [ -f /etc/machine-id ] || [ -s /etc/machine-id ]; then
  wrong "/etc/machine-id is not an empty file: instances would be the same machine, or apply presets"
fi
for program in cargo rustc; do
  ! command -v "$program" >/dev/null || wrong "$program is installed"
done

# Credentials, wherever they were put.
while read -r path; do
  wrong "$path looks like a secret"
done < <(grep --recursive --files-with-matches --binary-files=without-match --extended-regexp --no-messages \
  'aws_secret_access_key *=|BEGIN ([A-Z]+ )?PRIVATE KEY' /etc /root /home /opt)

# What an instance needs: the agent of this version, its settings to come, nothing that runs before them.
if command -v dpkg-query >/dev/null; then
  version=$(dpkg-query --show --showformat='${Version}' tapfleet)
else
  version=$(rpm --query --queryformat='%{VERSION}-%{RELEASE}' tapfleet)
fi
[ "$version" = "$TAPFLEET_VERSION-1" ] || wrong "the agent's package is '$version', not $TAPFLEET_VERSION"
for program in /usr/bin/tapfleetd /usr/lib/tapfleet/tapfleetd; do
  "$program" --version >/dev/null || wrong "$program does not run"
done
for unit in tapfleetd.service tapfleet-alert.path tapfleet-alert.timer; do
  ! systemctl --quiet is-enabled "$unit" 2>/dev/null || wrong "$unit would start before its settings are there"
done
# Systems differ in how they call it, and in whether a socket starts it: each must be masked, and no other may run it.
for unit in ssh.service ssh.socket sshd.service sshd.socket; do
  [ "$(systemctl is-enabled "$unit" 2>/dev/null)" = masked ] || wrong "$unit is not masked: it may let somebody in"
done
while read -r unit _; do
  ! systemctl show --property=ExecStart,Listen "$unit" 2>/dev/null | grep --quiet --extended-regexp '/sshd |[:=]22 ' || wrong "$unit lets somebody in"
done < <(systemctl list-unit-files --plain --no-legend --type=service,socket --state=enabled,enabled-runtime)
for file in /etc/cloud/cloud.cfg.d/99-tapfleet.cfg /usr/lib/sysctl.d/60-tapfleet.conf /usr/lib/udev/rules.d/60-tapfleet.rules; do
  [ -s "$file" ] || wrong "$file is missing"
done

if [ "$findings" -gt 0 ]; then
  echo "not clean: $findings findings" >&2
  exit 1
fi
echo "clean: tapfleet $version"
