#!/bin/bash
. ../lib.sh

# Disks of our own; what lies on their ESPs is what has to be found. $work is on a disk, not in /run: loop devices want room.
work=/var/tmp/odd-disks root=/run/odd-root
devices=() arrays=()
gone() {
  umount -q $root || true
  for array in "${arrays[@]}"; do $array; done
  for device in "${devices[@]}"; do losetup -d "$device"; done
  rm -rf $work
  let_go
}
trap gone EXIT
mkdir -p $work $root
modprobe loop 2>/dev/null || true
wanted=$(printf '%0128d' 7)

disk() { # NAME SECTOR-SIZE: sets $disk to the device, whose ESP has an entry and something staged
  perl gpt.pl "$work/$1" "$2"
  disk=$(losetup --find --show --partscan --sector-size "$2" "$work/$1")
  devices+=("$disk")
  udevadm settle
  mkfs.fat -S "$2" "${disk}p1" >/dev/null
  mkdir -p $work/esp
  mount "${disk}p1" $work/esp
  mkdir -p $work/esp/loader/entries $work/esp/loader/entries.staged
  printf 'title Odd\nlinux /v\noptions composefs=%s\n' "$wanted" >$work/esp/loader/entries/bootc_odd-1-1.conf
  touch $work/esp/v
  umount $work/esp
  udevadm settle
}
found() { # WHAT DEVICE-WITH-THE-ROOT [MKFS]
  local before
  udevadm settle # The name in /dev is udev's, and comes later than the device.
  wipefs -qa "$2"
  udevadm settle
  "${3:-mkfs.ext4}" -q "$2"
  mount "$2" $root
  mkdir -p $root/boot $root/state
  before=$(cksum <"${disk}p1")
  is "$1: the deployment of its ESP" "$(composefs-finalize status --json --sysroot $root --loader systemd-boot | value_of next)" "$wanted"
  is "$1: its ESP after looking" "$(cksum <"${disk}p1")" "$before"
  umount $root
}

disk small 512
found "sectors of 512 bytes" "${disk}p2"
small=$disk
disk large 4096
is "the sectors of a disk" "$(cat "/sys/block/${disk#/dev/}/queue/logical_block_size")" 4096
found "sectors of 4096 bytes" "${disk}p2"

# A disk without a table takes part in each of these.
truncate -s 96M $work/whole
whole=$(losetup --find --show $work/whole)
devices+=("$whole")
disk=$small
if command -v dmsetup >/dev/null && modprobe dm-mod; then
  half=$(($(blockdev --getsz "${small}p2") / 8 * 8))
  printf '0 %s linear %s 0\n%s 131072 linear %s 0\n' $half "${small}p2" $half "$whole" | dmsetup create odd-linear
  found "device mapper over a partition and a whole disk" /dev/mapper/odd-linear
  dmsetup remove odd-linear
else
  echo "SKIPPED: no dmsetup in this image"
fi
if command -v mdadm >/dev/null; then
  mdadm --create /dev/md/odd --run --level=1 --raid-devices=2 --metadata=1.2 "${small}p2" "$whole" 2>/dev/null
  arrays+=("mdadm --stop /dev/md/odd")
  found "RAID 1 over a partition and a whole disk" /dev/md/odd
  mdadm --stop /dev/md/odd
  arrays=()
  mdadm --zero-superblock "${small}p2" "$whole"
else
  echo "SKIPPED: no mdadm in this image"
fi
if command -v vgcreate >/dev/null; then
  pvcreate -qffy "${small}p2" "$whole"
  vgcreate -q odd "${small}p2" "$whole"
  lvcreate -qy -n root -l 100%VG odd
  found "LVM over a partition and a whole disk" /dev/odd/root
  vgremove -qf odd
else
  echo "SKIPPED: no LVM in this image"
fi
if command -v mkfs.btrfs >/dev/null; then
  found "btrfs" "${small}p2" "mkfs.btrfs"
else
  echo "SKIPPED: no mkfs.btrfs in this image"
fi
