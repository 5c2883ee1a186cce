#!/bin/bash
. ../lib.sh
rescue=$(printf 'title A rescue system\nlinux /rescue/vmlinuz\noptions quiet')
if [ -f "$entries" ]; then
  rescue=$(printf 'menuentry "Rescue" {\n  linux /rescue/vmlinuz "{"\n}')
  printf '\n%s\n' "$rescue" >>"$entries"
  # Where grub2-setpassword writes.
  password='GRUB2_PASSWORD=grub.pbkdf2.sha512.10000.AA.BB'
  { echo "$password"; cat "$entries"; } >"$entries.with-password"
  mv "$entries.with-password" "$entries"
  chmod 600 "$entries"
  note password "$password"
else
  # GRUB sorts by name, descending: what comes behind "bootc" would boot first, before an update as after it.
  echo "$rescue" >"$entries/a-rescue.conf"
  # In Latin-1, and switched off: what no boot loader reads is somebody's all the same.
  printf 'title R\351scue\nlinux /rescue/vmlinuz\n' >"$entries/a-latin1.conf"
  printf 'title Memory\n' >"$entries/memtest.conf.disabled"
fi
note rescue "$rescue"
