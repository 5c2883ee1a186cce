#!/bin/bash
. ../lib.sh
words="of /etc w"
has "what whoever logged in was told" "$(cat "$notes/motd")" "needs attention before the next shutdown"
has "what whoever logged in was told" "$(cat "$notes/motd")" "$words"
has "the status" "$(cat "$notes/attention")" "attention"
has "the journal" "$(journalctl -b -1 -u composefs-finalize-prepare -o cat)" "$words"
is "what is told now" "$(ls /run/motd.d/composefs-finalize 2>/dev/null || true)" ""
