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
# With entries, the ESP is mounted so just before the finalization, in a namespace where nobody sees the mount.
if [ "$boot_type" = bls ]; then
  systemctl stop run-readonly-esp.mount
  note read-only ""
  cat >/run/read-only <<END
mount -o ro $(blkid -t PARTLABEL=esp -o device) /run/readonly/esp
findmnt -rno OPTIONS /run/readonly/esp | cut -d, -f1 >$notes/read-only
tail -f /dev/null &
END
  systemd-run --quiet --unit read-only -p Type=oneshot -p RemainAfterExit=yes -p PrivateMounts=yes -p KillMode=none \
    -p DefaultDependencies=no -p Conflicts=shutdown.target -p After=composefs-finalize.service \
    -p ExecStop='/bin/bash /run/read-only' true
fi
