#!/usr/bin/env bash
# On the builder, as root, last but one: removes what belongs to this instance and to nobody who boots the image. prove-clean.sh tells
# whether it did. The session that this runs in goes on, a new one is not let in.
set -euo pipefail
shopt -s nullglob

# Access is by Systems Manager alone. Masked as systemctl would, which refuses where an alias has the name.
for unit in ssh.service ssh.socket sshd.service sshd.socket; do
  ln --symbolic --force /dev/null "/etc/systemd/system/$unit"
done
rm -f /etc/ssh/ssh_host_*
for home in /root /home/*; do
  rm -rf "$home"/.ssh/authorized_keys* "$home"/.ssh/known_hosts* "$home"/.{bash_history,python_history,lesshst,viminfo,wget-hsts} "$home"/.{aws,cache,cargo,rustup}
done

if command -v apt-get >/dev/null; then
  apt-get -qq clean
  rm -rf /var/lib/apt/lists/*
else
  dnf --quiet clean all
  rm -rf /var/cache/dnf
fi

# What cloud-init and the system remember of the first boot. An empty machine-id is made anew at the next one, and no preset is applied
# by that, as by a missing one: the agent must not be enabled before its settings are there.
if command -v cloud-init >/dev/null; then
  cloud-init clean --logs
fi
rm -rf /var/lib/cloud/*
: >/etc/machine-id
[ -L /var/lib/dbus/machine-id ] || rm -f /var/lib/dbus/machine-id
rm -f /var/lib/systemd/random-seed /var/lib/systemd/credential.secret /var/lib/dhcp/* /var/lib/dhclient/*
rm -rf /var/lib/NetworkManager/* /var/lib/chrony/*

# Logs last, and nobody writes on: the journal stays in memory from here. (auditd refuses to be stopped, not to be ended.)
for unit in rsyslog.service syslog.socket amazon-ssm-agent.service snap.amazon-ssm-agent.amazon-ssm-agent.service; do
  systemctl --quiet stop "$unit" 2>/dev/null || true
done
systemctl kill auditd.service 2>/dev/null || true
journalctl --relinquish-var
rm -rf /var/log/journal/* /var/lib/amazon/ssm/*
find /var/log -type f -exec truncate --size=0 {} +

rm -rf /var/tmp/tapfleet
find /tmp /var/tmp -xdev -type f ! -path "$0" -delete
sync
