#!/bin/bash
. ../lib.sh
systemctl stop boot.automount efi.automount boot.mount efi.mount 2>/dev/null || true
let_go
trap '' EXIT
note mounted "$(findmnt -t vfat -n | wc -l)"
