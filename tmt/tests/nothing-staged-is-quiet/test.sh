#!/bin/bash
. ../lib.sh

if once menu; then
  note record "$(cksum </sysroot/state/finalize/record.json)"
  next_boot
fi
another_boot
is "the record" "$(cksum </sysroot/state/finalize/record.json)" "$(noted record)"
said=$(journalctl -b -1 -u composefs-finalize -o cat)
has "the journal of the shutdown" "$said" "nothing is staged"
is "warnings" "$(journalctl -b -1 -t composefs-finalize -p warning -o cat)" ""
