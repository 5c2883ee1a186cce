#!/bin/bash
. ../lib.sh

is "how the first one ended" "$(noted interrupted)" 153
is "a file that it was copying" "$(cksum </etc/big.conf)" "$(noted big)"
is "a merge under way" "$(ls -d "$(state "$(noted staged)")/etc.merging" 2>/dev/null)" ""
