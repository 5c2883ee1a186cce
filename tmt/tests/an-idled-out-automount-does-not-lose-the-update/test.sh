#!/bin/bash
. ../lib.sh

is "ESPs that were mounted at the shutdown" "$(noted mounted)" 0
is "the deployment on /" "$(booted)" "$(noted staged)"
