#!/bin/bash
# Puts composefs-setup-root into the initramfs: it mounts the deployment that the kernel command line names on /sysroot.

check() {
    require_binaries /usr/lib/composefs/composefs-setup-root || return 1
    return 255 # only where it is asked for
}

depends() {
    echo systemd-initrd
}

installkernel() {
    hostonly='' instmods erofs overlay ext4 vfat nls_cp437 nls_ascii nls_iso8859-1 virtio_blk virtio_pci efivarfs
}

install() {
    inst /usr/lib/composefs/composefs-setup-root
    inst_simple "$moddir/setup-root-conf.toml" /usr/lib/composefs/setup-root-conf.toml
    for unit in composefs-setup-root.service composefs-setup-root-retry.service composefs-setup-root-panic.service; do
        inst_simple "$moddir/$unit" "$systemdsystemunitdir/$unit"
    done
    $SYSTEMCTL -q --root "$initdir" add-wants initrd-root-fs.target composefs-setup-root.service
    $SYSTEMCTL -q --root "$initdir" add-wants sysinit.target composefs-setup-root-panic.service
    $SYSTEMCTL -q --root "$initdir" add-wants emergency.target composefs-setup-root-retry.service
}
