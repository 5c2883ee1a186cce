#!/bin/bash
. ../lib.sh
found=$loader
umount /sys/firmware/efi/efivars
note without-variables "$(status | value_of loader)"
note with-variables "$found"
