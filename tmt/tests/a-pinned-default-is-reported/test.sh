#!/bin/bash
. ../lib.sh

variable=/sys/firmware/efi/efivars/LoaderEntryDefault-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f
case $TMT_REBOOT_COUNT in
  0)
    note pinned "$(fallback)"
    note unpinned "$(status | value_of next)"
    choose_second_entry
    if [ "$loader" = systemd-boot ]; then
      # The same choice, but for good: as `bootctl set-default` writes it.
      one_shot=${variable/Default/OneShot}
      chattr -i "$one_shot"
      rm "$one_shot"
      cat "$notes/variable" >"$variable"
      has "what status says" "$(status)" "LoaderEntryDefault"
    else
      has "what status says" "$(status)" "next_entry"
    fi
    has "what status says" "$(status)" "to undo"
    is "what boots next" "$(status | value_of next)" "$(noted pinned)"
    next_boot
    ;;
  1)
    another_boot
    is "the deployment on /" "$(booted)" "$(noted pinned)"
    if [ "$loader" = systemd-boot ]; then
      mountpoint -q /sys/firmware/efi/efivars || mount -t efivarfs efivarfs /sys/firmware/efi/efivars
      is "what boots next" "$(status | value_of next)" "$(noted pinned)"
      chattr -i "$variable"
      rm "$variable"
    fi
    is "what boots next without the pin" "$(status | value_of next)" "$(noted unpinned)"
    is "what pins it" "$(status | value_of pinned)" null
    next_boot
    ;;
  2)
    another_boot
    is "the deployment on /" "$(booted)" "$(noted unpinned)"
    ;;
esac
