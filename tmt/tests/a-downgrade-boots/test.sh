#!/bin/bash
. ../lib.sh

if once second; then
  stage_again "$(fallback)"
  note second "$(fallback)"
  next_boot
fi
is "the image" "$(image_version)" 13.1
is "the deployment on /" "$(booted)" "$(noted second)"
is "a file that the older image does not have" "$(ls /etc/demo.d/added.conf 2>/dev/null)" ""
