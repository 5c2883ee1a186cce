#!/bin/bash
. ../lib.sh

ours() { (cd "$1/loader/entries" && tail -n +1 bootc_*.conf); }
[ -n "$mirror" ] || { echo "this machine has one ESP" && exit; }
has "the entries of the ESP that booted" "$(ours $esp)" "$(booted)"
is "those of the other one" "$(ours $mirror | cksum)" "$(ours $esp | cksum)"
is "staged entries there" "$(ls -d $mirror/loader/entries.staged 2>/dev/null)" ""
