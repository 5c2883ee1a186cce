#!/bin/bash
. ../lib.sh

image=docker://10.0.2.100:5000/os:v3
[ "$boot_type" = bls ] || image=$image-uki

if once registry; then
  has "what there is" "$(image-tools stage --check "$image")" "has an update"
  # A full boot file system refuses, says how much is missing, and nothing has changed.
  case $loader-$boot_type in grub-bls) full=$boot ;; *) full=$esp ;; esac
  before=$(entries_now || true)
  free=$(df --output=avail -B 1 "$full" | tail -n 1)
  [ $full = /sysroot/boot ] || fallocate -l $((free - (8 << 20))) "$full/full" 2>/dev/null ||
    head -c $((free - (8 << 20))) /dev/zero >"$full/full"
  if [ -e "$full/full" ]; then
    code=0
    said=$(image-tools stage "$image" 2>&1) || code=$?
    is "the exit code where there is no room" "$code" 3
    has "what is said" "$said" "MiB more on the boot file system"
    is "entries" "$(entries_now)" "$before"
    is "what is staged" "$(staged)" ""
    rm "$full/full"
  fi
  has "a download" "$(image-tools stage --lock "$image")" "it waits until it is unlocked"
  is "the lock" "$(status | value_of locked)" true
  has "the update" "$(image-tools stage "$image")" "the next shutdown finalizes it"
  note registry "$(staged)"
  echo "from = here" >/etc/registry.conf
  # The repository is sealed, and stays so.
  has "the image's attributes" "$(lsattr "$(readlink -f "/sysroot/composefs/images/$(staged)")" | cut -d ' ' -f 1)" V
  next_boot
fi
another_boot
is "the deployment on /" "$(booted)" "$(noted registry)"
is "the version" "$(image_version)" 13.3
is "the fallback" "$(fallback)" "$(noted was-booted)"
is "the outcome" "$(recorded outcome)" finalized
is "a local change" "$(cat /etc/registry.conf)" "from = here"
has "what it comes from" "$(cat "$(state "$(booted)")"/*.origin)" "$image"
systemctl start image-tools-stage.service
has "the unit" "$(journalctl -b -u image-tools-stage -o cat)" "is what this machine runs"
