#!/bin/bash
. ../lib.sh

is "a changed file" "$(cat /etc/demo.d/local.conf)" "from = here"
is "a new file" "$(cat /etc/motd.local)" "hello"
is "its owner and mode" "$(stat -c '%u:%g %a' /etc/motd.local)" "1:2 4640"
is "a new link" "$(readlink /etc/dangling)" "/nowhere/at/all"
is "a removed file" "$(ls /etc/demo.d/removed.conf 2>/dev/null)" ""
is "a removed unit link" "$(readlink /etc/systemd/system/timers.target.wants/fstrim.timer)" ""
is "a local user" "$(id -nu 1000)" somebody
is "the machine's id" "$(cat /etc/machine-id)" "$(noted machine-id)"
is "the machine's ssh key" "$(cksum </etc/ssh/ssh_host_ed25519_key)" "$(noted ssh-key)"
