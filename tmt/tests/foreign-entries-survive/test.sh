#!/bin/bash
. ../lib.sh

if [ -f "$entries" ]; then
  is "a menuentry of somebody else" "$(grep -A 2 Rescue "$entries")" "$(noted rescue)"
else
  is "an entry of somebody else" "$(cat "$entries/a-rescue.conf")" "$(noted rescue)"
fi
if [ -f "$entries/grub.cfg" ]; then has "GRUB's menu" "$(cat "$entries/grub.cfg")" "menuentry 'A rescue system'"; fi
