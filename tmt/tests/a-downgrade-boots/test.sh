#!/bin/bash
. ../lib.sh

second_update
is "the image" "$(image_version)" 13.1
is "the deployment on /" "$(booted)" "$(noted second)"
is "a file that the older image does not have" "$(ls /etc/demo.d/added.conf 2>/dev/null)" ""
