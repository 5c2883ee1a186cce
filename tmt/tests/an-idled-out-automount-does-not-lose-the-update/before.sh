#!/bin/bash
. ../lib.sh
systemctl stop boot.automount efi.automount boot.mount efi.mount 2>/dev/null || true
umount $esp
[ $boot = /sysroot/boot ] || umount $boot
trap '' EXIT
note mounted "$(findmnt -t vfat -n | wc -l)"
