#!/bin/bash
. ../lib.sh
rescue=$(printf 'title A rescue system\nlinux /rescue/vmlinuz\noptions quiet')
if [ -f "$entries" ]; then
  rescue=$(printf 'menuentry "Rescue" {\n  linux /rescue/vmlinuz "{"\n}')
  printf '\n%s\n' "$rescue" >>"$entries"
else
  # GRUB sorts by name, descending: what comes behind "bootc" would boot first, before an update as after it.
  echo "$rescue" >"$entries/a-rescue.conf"
fi
note rescue "$rescue"
