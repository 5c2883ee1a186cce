#!/bin/bash
. ../lib.sh

is "the finalization's unit and sshd's in rescue mode" "$(noted in-rescue)" "active inactive"
is "the deployment on /" "$(booted)" "$(noted second)"
is "a file that was made in rescue mode" "$(cat /etc/rescue.conf)" "from = rescue"
