#!/bin/bash
. ../lib.sh

live_now() { find "$entries" -type f -exec tail -n +1 {} + | sort | cksum; }
outcome() { "$@" --json | value_of outcome; }
roles() { status | sed -n "/\"id\": \"$1\"/,/]/p" | sed -nE 's/^ {8,}"([a-z]+)",?$/\1/p' | paste -sd ' '; }
# Nothing that an entry names is collected: entries, kernels, states and images are what they were.
collects_nothing() {
  local before id
  before=$(live_now)
  composefs-finalize gc --dry-run
  is "what gc would remove, by name" "$(composefs-finalize gc --dry-run | grep -c '^would remove [^0-9]' || true)" 0
  composefs-finalize gc
  is "the entries after gc" "$(live_now)" "$before"
  for id in "$(booted)" "$(fallback)"; do
    is "kernel, state and image of ${id:0:12}" \
      "$([ -e "$(kernel_of "$id")" ] && [ -d "$(state "$id")/etc" ] && [ -e "/sysroot/composefs/images/$id" ] && echo here)" here
  done
}

case $TMT_REBOOT_COUNT in
  0)
    note new "$(booted)"
    note old "$(fallback)"
    echo forward >/etc/forward.conf
    echo back >"$(state "$(noted old)")/etc/back.conf"
    rm -f "$(state "$(noted old)")/etc/forward.conf"
    collects_nothing
    is "the pin" "$(outcome composefs-finalize pin "$(noted old)")" "done"
    is "the same pin" "$(outcome composefs-finalize pin "$(noted old)")" nothing-to-do
    is "what unstage does" "$(outcome composefs-finalize unstage)" nothing-to-do
    before=$(live_now)
    is "the rollback that writes nothing" "$(outcome composefs-finalize rollback --dry-run)" would-be-done
    is "the entries after it" "$(live_now)" "$before"
    is "the rollback" "$(outcome composefs-finalize rollback)" "done"
    is "what boots next" "$(status | value_of next)" "$(noted old)"
    is "the fallback" "$(fallback)" "$(noted new)"
    is "the old deployment" "$(roles "$(noted old)")" "next pinned"
    is "the new deployment" "$(roles "$(noted new)")" "booted fallback"
    composefs-finalize status
    next_boot
    ;;
  1)
    another_boot
    is "the deployment on /" "$(booted)" "$(noted old)"
    is "its own /etc" "$(cat /etc/back.conf)" back
    is "what is not in it" "$([ -e /etc/forward.conf ] || echo absent)" absent
    collects_nothing
    is "the rollback" "$(outcome composefs-finalize rollback)" "done"
    is "what boots next" "$(status | value_of next)" "$(noted new)"
    next_boot
    ;;
  2)
    another_boot
    is "the deployment on /" "$(booted)" "$(noted new)"
    is "its own /etc" "$(cat /etc/forward.conf)" forward
    is "what is not in it" "$([ -e /etc/back.conf ] || echo absent)" absent
    is "the pin that goes" "$(outcome composefs-finalize pin --remove "$(noted old)")" "done"
    is "the new deployment" "$(roles "$(noted new)")" "booted next"
    is "the old deployment" "$(roles "$(noted old)")" fallback
    collects_nothing
    ;;
esac
