#!/bin/bash
. ../lib.sh

mark() { # LOCKED: in both places
  for file in /run/composefs/staged-deployment /sysroot/state/finalize/staged.json; do
    printf '{"depl_id":"%s","finalization_locked":%s}' "$was_staged" "$1" >"$file"
  done
  sync
}
was_staged=$(staged) entries_before=$(entries_now) began=$(date +%s)
mark true
# As a shutdown does.
systemctl stop composefs-finalize
said=$(journalctl --since "@$began" -u composefs-finalize -o cat)
systemctl start composefs-finalize
is "the entries" "$(entries_now)" "$entries_before"
is "what is staged" "$(staged)" "$was_staged"
is "locked" "$(status | value_of locked)" true
has "the journal" "$said" "locked: not finalized"
mark false
