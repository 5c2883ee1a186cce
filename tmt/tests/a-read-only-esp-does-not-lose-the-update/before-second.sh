#!/bin/bash
. ../lib.sh
# What boots is mounted read-only until after the finalization: what is ordered before it is stopped behind it.
systemctl stop boot.automount efi.automount boot.mount efi.mount 2>/dev/null || true
let_go
trap '' EXIT
for where in esp boot; do
  device=$(blkid -t "PARTLABEL=$where" -o device || true)
  [ -n "$device" ] || continue
  printf '[Unit]\nDefaultDependencies=no\nBefore=composefs-finalize.service\n[Mount]\nWhat=%s\nWhere=%s\nOptions=ro\n' \
    "$device" "/run/readonly/$where" >"/run/systemd/system/run-readonly-$where.mount"
  systemctl daemon-reload
  systemctl start "run-readonly-$where.mount"
done
note read-only "$(findmnt -rno OPTIONS /run/readonly/esp | cut -d, -f1)"
