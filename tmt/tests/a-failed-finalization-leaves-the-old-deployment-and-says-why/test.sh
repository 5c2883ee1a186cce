#!/bin/bash
. ../lib.sh

case $TMT_REBOOT_COUNT in
  0)
    note staged "$(staged)"
    mv "$(kernel_of "$(staged)")" "$(kernel_of "$(staged)").hidden"
    note entries "$(entries_now)"
    next_boot
    ;;
  1)
    another_boot
    is "the deployment on /" "$(booted)" "$(noted was-booted)"
    is "the entries" "$(entries_now)" "$(noted entries)"
    is "the outcome" "$(recorded outcome)" failed
    has "the record" "$(cat /sysroot/state/finalize/record.json)" "$(basename "$(kernel_of "$(noted staged)")")"
    has "the journal of the shutdown" "$(journalctl -b -1 -u composefs-finalize -o cat)" "which its boot entry names"
    has "the report" "$(journalctl -b -u composefs-finalize-report -o cat)" "tried again at the next shutdown"
    is "what is staged" "$(staged)" "$(noted staged)"
    mv "$(kernel_of "$(noted staged)").hidden" "$(kernel_of "$(noted staged)")"
    sync
    ;;
esac
