#!/bin/bash
. ../lib.sh

is "the boot loader without EFI variables" "$(noted without-variables)" "$(noted with-variables)"
is "the deployment on /" "$(booted)" "$(noted second)"
