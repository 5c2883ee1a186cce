#!/bin/bash
. ../lib.sh

case $TMT_REBOOT_COUNT in
  0)
    composefs-finalize status --json | sed -n '/"staged": {/,/}/p' | value_of id >"$notes/staged"
    echo "from = here" >/etc/demo.d/local.conf
    rm /etc/demo.d/removed.conf
    echo hello >/etc/motd.local
    ln -s /nowhere/at/all /etc/dangling
    systemctl disable -q fstrim.timer
    next_boot
    ;;
  1)
    another_boot
    is "the deployment on /" "$(booted)" "$(cat "$notes/staged")"
    is "a changed file" "$(cat /etc/demo.d/local.conf)" "from = here"
    is "a new file" "$(cat /etc/motd.local)" "hello"
    is "a new link" "$(readlink /etc/dangling)" "/nowhere/at/all"
    is "a removed file" "$(ls /etc/demo.d/removed.conf 2>/dev/null)" ""
    is "a removed unit link" "$(readlink /etc/systemd/system/timers.target.wants/fstrim.timer)" ""
    is "a file that the image changed" "$(cat /etc/demo.d/changed.conf)" "from = v2"
    is "a file that the image added" "$(cat /etc/demo.d/added.conf)" "from = v2"
    is "a file that the image dropped" "$(ls /etc/demo.d/dropped.conf 2>/dev/null)" ""
    is "the outcome" "$(value_of outcome </sysroot/state/finalize/record.json)" "finalized"
    ;;
esac
