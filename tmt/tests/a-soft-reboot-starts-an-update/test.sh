#!/bin/bash
. ../lib.sh

refusal() { composefs-finalize staged --soft-reboot --dry-run --json || echo "exit code $?"; }
# But for what fails wherever it is asked for: systemd 262 takes every boot partition for FAT, and images have no /efi.
failed() {
  systemctl --failed --quiet --plain --no-legend | cut -d' ' -f1 | { grep -vxE 'boot\.mount|efi\.automount' || true; }
}
boot_id() { cat /proc/sys/kernel/random/boot_id; }

case $TMT_REBOOT_COUNT in
  0)
    note next "$(fallback)"
    stage_again "$(noted next)"
    if grep -q '^boot_type = uki' "$(state "$(noted next)")/$(noted next).origin"; then
      has "why not" "$(refusal)" "a UKI brings its own kernel"
      has "why not" "$(refusal)" "exit code 3"
      is "what unstage does" "$(composefs-finalize unstage --json | value_of outcome)" "done"
      exit
    fi
    # An option that the running kernel was not started with.
    cp -a "$entries.staged" "$notes/entries.staged"
    sed -i 's/^options /&nosmt /' "$entries.staged"/bootc_*.conf
    has "why not" "$(refusal)" "other options: +nosmt"
    cp "$notes"/entries.staged/* "$entries.staged/"
    echo soft >/etc/soft.conf
    boot_id >"$notes/boot-id"
    trap '' EXIT
    tmt-reboot -s -c "composefs-finalize staged --soft-reboot"
    ;;
  1)
    is "the boot of the kernel" "$(boot_id)" "$(noted boot-id)"
    is "the deployment on /" "$(booted)" "$(noted next)"
    is "a local change" "$(cat /etc/soft.conf)" soft
    is "the outcome" "$(recorded outcome)" finalized
    is "what booted then" "$(sed -n '/"next_boot"/,/}/p' /sysroot/state/finalize/record.json | value_of booted)" "$(noted next)"
    is "what is staged" "$(staged)" ""
    is "the physical root" "$(findmnt -no FSTYPE /sysroot)" "$(blkid -t LABEL=root -o value -s TYPE)"
    touch /var/tmp/writable /etc/writable
    is "what has failed" "$(failed)" ""
    composefs-finalize status
    # One that was asked for, and whose update is not finalized.
    mkdir -p /run/composefs
    echo "composefs=$(fallback)" >/run/composefs/soft-reboot
    systemctl start composefs-finalize-next-root.service
    trap '' EXIT
    tmt-reboot -s
    ;;
  2)
    is "the boot of the kernel" "$(boot_id)" "$(noted boot-id)"
    is "the deployment on /, once more" "$(booted)" "$(noted next)"
    has "the journal" "$(journalctl -b -o cat --no-pager | grep -F 'begins anew')" "begins anew, not the update"
    is "what has failed" "$(failed)" ""
    touch /var/tmp/writable /etc/writable
    boot_id >"$notes/boot-id"
    next_boot
    ;;
  3)
    another_boot
    is "the deployment on /, from the boot loader" "$(booted)" "$(noted next)"
    is "a local change" "$(cat /etc/soft.conf)" soft
    ;;
esac
