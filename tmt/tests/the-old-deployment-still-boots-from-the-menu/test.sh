#!/bin/bash
. ../lib.sh

if once menu; then
  note second-entry "$(fallback)"
  note record "$(cksum </sysroot/state/finalize/record.json)"
  choose_second_entry
  next_boot
fi
another_boot
is "the deployment on /" "$(booted)" "$(noted second-entry)"
