#!/bin/bash
. ../lib.sh

next=$(status | value_of next) loader=$(status | value_of loader)
let_go
trap '' EXIT
device=$(blkid -t PARTLABEL=esp -o device)

# Somebody writes to the ESP, in a namespace where nobody sees the mount.
mkdir -p /run/writer
mkfifo /run/writer.held /run/writer.done
unshare --mount bash -c "mount $device /run/writer && echo held >/run/writer.held && read -r _ </run/writer.done" &
read -r held </run/writer.held
is "the other's mount" "$held" held
is "what boots next, while somebody writes" "$(status | value_of next)" "$next"
echo >/run/writer.done
wait
rm /run/writer.held /run/writer.done

# What a power cut leaves on an ESP that nobody mounts is mended before it is written to.
if [ "$loader" = systemd-boot ]; then
  dirty() { dd if="$device" bs=1 skip=65 count=1 status=none | od -An -tu1 | tr -d ' '; }
  systemctl stop {boot,efi}.{automount,mount} 2>/dev/null || true
  is "mounts of the ESP" "$(findmnt -rno TARGET -t vfat)" ""
  printf '\1' | dd of="$device" bs=1 seek=65 conv=notrunc,fsync status=none
  is "the ESP's state" "$(dirty)" 1
  printf '{"depl_id":"%s","finalization_locked":false}' "$(booted)" >/sysroot/state/finalize/staged.json
  systemctl restart composefs-finalize-report
  is "the ESP's state after a report" "$(dirty)" 0
fi

# A mount unit waits for somebody to look.
systemctl stop {boot,efi}.{automount,mount} 2>/dev/null || true
printf '[Automount]\nWhere=/boot\n' >/run/systemd/system/boot.automount
printf '[Mount]\nWhat=%s\nWhere=/boot\n' "$device" >/run/systemd/system/boot.mount
systemctl daemon-reload
systemctl start boot.automount

# So it does for a report that has something to remove there: what a power cut has left on FAT must be checked before.
if [ "$loader" = systemd-boot ]; then
  printf '{"depl_id":"%s","finalization_locked":false}' "$(booted)" >/sysroot/state/finalize/staged.json
  composefs-finalize report
  is "the mount after a report" "$(findmnt -rno OPTIONS -t vfat /boot | cut -d, -f1)" rw
  systemctl stop boot.mount
fi
is "the mount before somebody has looked" "$(findmnt -rno OPTIONS -t vfat /boot)" ""
status >/dev/null
is "the mount after somebody has looked" "$(findmnt -rno OPTIONS -t vfat /boot | cut -d, -f1)" rw
systemctl stop boot.automount boot.mount
rm /run/systemd/system/boot.{automount,mount}
systemctl daemon-reload
