# What the tests have in common; sourced. The machine lives through all of them, in the order of their numbers, so a reboot
# serves every sentence that is about it. `before.sh` is run before the shutdown that updates the machine, `test.sh` after it.
set -euo pipefail
notes=/var/tmp/notes
mkdir -p "$notes"

# One value of some JSON, by its key: the guest has no jq.
value_of() { sed -nE "s/^ {2,6}\"$1\": \"?([^\",]*)\"?,?$/\1/p" | sed -n 1p; }
status() { composefs-finalize status --json; }
booted() { findmnt -no SOURCE / | cut -d: -f2; }
staged() { status | sed -n '/"staged": {/,/}/p' | value_of id; }
fallback() { status | sed -n '/"fallback": \[/,/\]/p' | sed -nE 's/^ +"([0-9a-f]+)",?$/\1/p' | sed -n 1p; }
recorded() { value_of "$1" </sysroot/state/finalize/record.json; }
image_version() { sed -n 's/^VERSION_ID="\(.*\)"$/\1/p' /usr/lib/os-release; }
state() { echo "/sysroot/state/deploy/$1"; }
note() { echo "$2" >"$notes/$1"; }
noted() { cat "$notes/$1"; }

is() { # WHAT FOUND WANTED
  if [ "$2" = "$3" ]; then
    echo "right: $1: $2"
  else
    echo "WRONG: $1 is '$2', must be '$3'"
    exit 1
  fi
}
has() { # WHAT TEXT PART
  case $2 in
    *"$3"*) echo "right: $1 has: $3" ;;
    *) echo "WRONG: $1 has no '$3': $2" && exit 1 ;;
  esac
}

# Whether this is the first time that it is asked.
once() { [ ! -e "$notes/once-$1" ] && touch "$notes/once-$1"; }

# Notes which boot this is, and begins another one, with the command of the note reboot-by where a sentence has left one.
next_boot() {
  local by=()
  cat /proc/sys/kernel/random/boot_id >"$notes/boot-id"
  booted >"$notes/was-booted"
  [ ! -e "$notes/reboot-by" ] || by=(-c "$(noted reboot-by)")
  rm -f "$notes/reboot-by"
  tmt-reboot "${by[@]}"
  exit
}
another_boot() { is "another boot" "$([ "$(cat /proc/sys/kernel/random/boot_id)" != "$(noted boot-id)" ] && echo yes)" yes; }

# Goes back to the deployment from before the update, as one more update, at the first call; `before-second.sh` is run before.
second_update() {
  once second || return 0
  local id before
  id=$(fallback)
  stage_again "$id"
  note second "$id"
  for before in ../*/before-second.sh; do (cd "$(dirname "$before")" && ./before-second.sh); done
  trap '' EXIT
  next_boot
}

# Whoever looks at a file system that nobody has mounted keeps others from mounting it to write for as long: what is being
# prepared is waited for.
while [ "$(systemctl is-active composefs-finalize-prepare.service)" = activating ]; do
  systemctl start composefs-finalize-prepare.service || true
done

# Where things are: the boot loader's partition is mounted for as long as the test runs.
esp=/run/test-esp
if ! mountpoint -q $esp; then
  mkdir -p $esp
  mount "$(blkid -t PARTLABEL=esp -o device | sed -n 1p)" $esp
fi
let_go() {
  umount $esp
  [ -z "$mirror" ] || umount $mirror
  [ $boot = /sysroot/boot ] || umount $boot
}
trap let_go EXIT
mount -o remount,rw /sysroot
boot=/sysroot/boot mirror=
device=$(blkid -t PARTLABEL=esp-mirror -o device || true)
if [ -n "$device" ]; then
  mirror=/run/test-esp-mirror
  mkdir -p $mirror
  mountpoint -q $mirror || mount "$device" $mirror
fi
partition=$(blkid -t PARTLABEL=boot -o device || true)
if [ -n "$partition" ]; then
  boot=/run/test-boot
  mkdir -p $boot
  mountpoint -q $boot || mount "$partition" $boot
fi
loader=$(status | value_of loader)
boot_type=$(status | value_of boot_type)
case $loader-$boot_type in
  systemd-boot-*) entries=$esp/loader/entries ;;
  grub-bls) entries=$boot/loader/entries ;;
  grub-uki) entries=$boot/grub2/user.cfg ;;
esac
entries_now() { find "$entries" "$entries.staged" -type f -exec tail -n +1 {} + 2>/dev/null | sort | cksum; }

# What boots a deployment: a directory, or a UKI.
kernel_of() {
  case $loader-$boot_type in
    *-uki) echo "$esp/EFI/Linux/bootc/bootc_composefs-$1.efi" ;;
    systemd-boot-bls) echo "$esp/EFI/Linux/bootc_composefs-$1" ;;
    grub-bls) echo "$boot/bootc_composefs-$1" ;;
  esac
}

# The booted image's own /etc, which lies below what is mounted on /etc.
keep_image_etc() {
  mkdir -p /run/test-image "$notes/etc-of-$(booted)"
  mount --bind / /run/test-image
  cp -a /run/test-image/etc/. "$notes/etc-of-$(booted)"
  umount /run/test-image
}

# What the checkers of account files find in a directory like /etc, without the lines that they would delete.
accounts_complaints() { # DIR
  { pwck -r "$1/passwd" "$1/shadow" || true; grpck -r "$1/group" "$1/gshadow" || true; } 2>&1 |
    grep -v -e '^delete line' -e ': no changes$' | sed "s|$1/|/etc/|g" | sort
}

# Stages a deployment that was booted before, as a staging tool does: its image's /etc, entries, marker.
stage_again() { # ID
  chattr -Rf -ia "$(state "$1")"/etc* || true
  rm -rf "$(state "$1")"/etc*
  cp -a "$notes/etc-of-$1" "$(state "$1")/etc"
  if [ -f "$entries" ]; then
    awk -v id="$1" 'BEGIN { RS = ""; ORS = "\n\n" } NR == 1 { print; next } index($0, id) { first = $0; next }
      { rest = rest $0 "\n\n" } END { print first; printf "%s", rest }' "$entries" >"$entries.staged"
  else
    mkdir "$entries.staged"
    for file in "$entries"/bootc_*.conf; do
      next=$(grep -q "$1" "$file" && echo 0 || echo 1)
      version=$(sed -n 's/^version //p' "$file")
      sed "s/^sort-key .*/sort-key bootc-debian-$next/" "$file" >"$entries.staged/bootc_debian-$version-$((1 - next)).conf"
    done
  fi
  if [ -n "$mirror" ]; then cp -r "$entries.staged" $mirror/loader/; fi
  sync
  mkdir -p /run/composefs
  printf '{"depl_id":"%s","finalization_locked":false}' "$1" >/run/composefs/staged-deployment
}

# Tells the boot loader to boot its second entry once.
choose_second_entry() {
  case $loader in
    grub) grub-editenv $boot/grub2/grubenv set next_entry=1 ;;
    systemd-boot)
      name=$(grep -l "$(fallback)" "$entries"/*.conf | xargs -n1 basename)
      mountpoint -q /sys/firmware/efi/efivars || mount -t efivarfs efivarfs /sys/firmware/efi/efivars
      { printf '\7\0\0\0'; printf '%s\0' "$name" | sed 's/./&\x00/g'; } >"$notes/variable"
      cat "$notes/variable" >/sys/firmware/efi/efivars/LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f
      ;;
  esac
  sync
}
