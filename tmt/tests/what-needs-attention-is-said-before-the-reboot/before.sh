#!/bin/bash
. ../lib.sh
is "the unit that watches what is staged" "$(systemctl is-active composefs-finalize-prepare.path)" active
systemctl start composefs-finalize-prepare
cp /run/motd.d/composefs-finalize "$notes/motd"
composefs-finalize status >"$notes/attention"
