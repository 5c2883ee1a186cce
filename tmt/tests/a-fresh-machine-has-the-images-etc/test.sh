#!/bin/bash
. ../lib.sh

# What no image can bring: the keys that sshd made at the first boot.
differs=$(composefs-finalize etc status | grep -vE '^added    /etc/ssh/ssh_host_|^/etc: ' || true)
is "the /etc of a machine that has booted once" "$differs" ""
