#!/bin/bash
. ../lib.sh
echo "from = here" >/etc/demo.d/local.conf
rm /etc/demo.d/removed.conf
echo hello >/etc/motd.local
chown 1:2 /etc/motd.local
chmod 4640 /etc/motd.local
ln -s /nowhere/at/all /etc/dangling
systemctl disable -q fstrim.timer
useradd -M somebody
note machine-id "$(cat /etc/machine-id)"
note ssh-key "$(cksum </etc/ssh/ssh_host_ed25519_key)"
