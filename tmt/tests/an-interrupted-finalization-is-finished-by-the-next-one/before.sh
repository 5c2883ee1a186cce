#!/bin/bash
. ../lib.sh
head -c 100000 /dev/urandom >/etc/big.conf
note big "$(cksum </etc/big.conf)"
# A file of more than 1 KiB kills it, in the middle of the merge.
code=0
(ulimit -c 0 && ulimit -f 1 && exec composefs-finalize staged) || code=$?
note interrupted "$code"
is "a merge under way" "$(ls -d "$(state "$(noted staged)")/etc.merging")" "$(state "$(noted staged)")/etc.merging"
