#!/bin/bash
. ../lib.sh

is "the image's file" "$(cat /etc/demo.d/both.conf)" "from = v2"
is "the local directory" "$(cat "$(state "$(noted staged)")/etc.conflicts/demo.d/both.conf/inside")" "from = here"
has "the record" "$(cat /sysroot/state/finalize/record.json)" "demo.d/both.conf"
