#!/bin/bash
. ../lib.sh
rescue=$(printf 'title A rescue system\nlinux /rescue/vmlinuz\noptions quiet')
if [ -f "$entries" ]; then
  rescue=$(printf 'menuentry "Rescue" {\n  linux /rescue/vmlinuz "{"\n}')
  printf '\n%s\n' "$rescue" >>"$entries"
else
  echo "$rescue" >"$entries/rescue.conf"
fi
note rescue "$rescue"
