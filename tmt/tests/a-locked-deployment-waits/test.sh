#!/bin/bash
. ../lib.sh

mark() { # LOCKED: in both places
  for file in /run/composefs/staged-deployment /sysroot/state/finalize/staged.json; do
    printf '{"depl_id":"%s","finalization_locked":%s}' "$(noted staged)" "$1" >"$file"
  done
  sync
}
case $TMT_REBOOT_COUNT in
  0)
    note staged "$(staged)"
    mark true
    note entries "$(entries_now)"
    next_boot
    ;;
  1)
    another_boot
    is "the deployment on /" "$(booted)" "$(noted was-booted)"
    is "the entries" "$(entries_now)" "$(noted entries)"
    is "what is staged" "$(staged)" "$(noted staged)"
    is "locked" "$(status | value_of locked)" true
    has "the journal of the shutdown" "$(journalctl -b -1 -u composefs-finalize -o cat)" "locked: not finalized"
    mark false
    ;;
esac
