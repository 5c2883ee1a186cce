#!/bin/bash
. ../lib.sh

is "both units before the shutdown" "$(noted both)" "active active"
is "the deployment on /" "$(booted)" "$(noted staged)"
has "what bootc's unit said" "$(journalctl -b -1 -u bootc-finalize-staged -o cat)" "no marker: nothing to do"
is "a file that bootc's unit makes" "$(ls /etc/bootc-was-here 2>/dev/null)" ""
