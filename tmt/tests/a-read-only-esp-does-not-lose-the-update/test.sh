#!/bin/bash
. ../lib.sh

is "how the ESP was mounted at the shutdown" "$(noted read-only)" ro
is "the deployment on /" "$(booted)" "$(noted second)"
