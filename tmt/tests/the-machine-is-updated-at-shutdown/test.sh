#!/bin/bash
. ../lib.sh

case $TMT_REBOOT_COUNT in
  0)
    note staged "$(staged)"
    note version "$(image_version)"
    keep_image_etc
    for before in ../*/before.sh; do (cd "$(dirname "$before")" && ./before.sh); done
    trap '' EXIT
    next_boot
    ;;
  1)
    another_boot
    is "the deployment on /" "$(booted)" "$(noted staged)"
    is "the fallback" "$(fallback)" "$(noted was-booted)"
    is "the outcome" "$(recorded outcome)" finalized
    is "what is staged" "$(staged)" ""
    is "staged entries" "$(ls -d "$entries.staged" 2>/dev/null)" ""
    has "the journal of the shutdown" "$(journalctl -b -1 -u composefs-finalize -o cat)" "it boots next"
    has "the report" "$(journalctl -b -u composefs-finalize-report -o cat)" "has booted"
    keep_image_etc
    ;;
esac
