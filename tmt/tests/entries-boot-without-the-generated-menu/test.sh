#!/bin/bash
. ../lib.sh

generated=$entries/grub.cfg
case $TMT_REBOOT_COUNT in
  0)
    [ -e "$generated" ] || { echo "this boot loader reads entries itself, or has none" && exit; }
    # As after somebody has exchanged the entries and knows of no generated menu.
    mv "$generated" "$notes/generated"
    sync
    next_boot
    ;;
  1)
    another_boot
    is "the deployment on /" "$(booted)" "$(noted was-booted)"
    is "the generated menu" "$(ls "$generated" 2>/dev/null)" ""
    cp "$notes/generated" "$generated"
    ;;
esac
