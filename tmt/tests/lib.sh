# What the tests have in common; sourced. A test runs once before the reboot and once after it.
set -euo pipefail
notes=/var/tmp/notes
mkdir -p "$notes"

booted() { findmnt -no SOURCE / | cut -d: -f2; }
status() { composefs-finalize status --json | value_of "$1"; }
# One value of some JSON, by its key: the guest has no jq.
value_of() { sed -nE "s/^ {2,4}\"$1\": \"?([^\",]*)\"?,?$/\1/p" | head -n1; }

is() { # WHAT FOUND WANTED
  if [ "$2" = "$3" ]; then
    echo "right: $1: $2"
  else
    echo "WRONG: $1 is '$2', must be '$3'"
    exit 1
  fi
}

# Notes which boot this is, and begins another one; the shutdown between them finalizes.
next_boot() {
  cat /proc/sys/kernel/random/boot_id >"$notes/boot-id"
  booted >"$notes/booted"
  tmt-reboot
}

another_boot() { is "another boot" "$([ "$(cat /proc/sys/kernel/random/boot_id)" != "$(cat "$notes/boot-id")" ] && echo yes)" yes; }
