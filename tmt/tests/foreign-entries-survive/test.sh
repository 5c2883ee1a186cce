#!/bin/bash
. ../lib.sh

if [ -f "$entries" ]; then
  is "a menuentry of somebody else" "$(grep -A 2 Rescue "$entries")" "$(noted rescue)"
  is "GRUB's password" "$(sed -n 1p "$entries")" "$(noted password)"
  is "the mode of a menu with a password" "$(stat -c %a "$entries")" 600
else
  is "an entry of somebody else" "$(cat "$entries/a-rescue.conf")" "$(noted rescue)"
  is "an entry in Latin-1" "$(od -An -c -N 9 "$entries/a-latin1.conf" | tr -s ' ')" " t i t l e R 351 s"
  is "an entry that is switched off" "$(cat "$entries/memtest.conf.disabled")" "title Memory"
fi
if [ -f "$entries/grub.cfg" ]; then has "GRUB's menu" "$(cat "$entries/grub.cfg")" "menuentry 'A rescue system'"; fi
