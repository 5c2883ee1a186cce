#!/bin/bash
. ../lib.sh

[ -e "$notes/once-second" ] || echo "from = the second" >/etc/second.conf
second_update
another_boot
is "the deployment on /" "$(booted)" "$(noted second)"
is "the fallback" "$(fallback)" "$(noted was-booted)"
is "the outcome" "$(recorded outcome)" finalized
is "a local change from before this update" "$(cat /etc/second.conf)" "from = the second"
is "a local change from before the other" "$(cat /etc/big.conf | cksum)" "$(noted big)"
is "the image's file" "$(cat /etc/demo.d/changed.conf)" "from = v1"
