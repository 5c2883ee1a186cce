#!/bin/bash
. ../lib.sh

key=/etc/bell.d/key
plan=$(cat "$notes/plan-second")
has "the plan" "$plan" "$key belongs to uid 472, which is svc-bell: it gets 471"
has "the plan" "$plan" "$key has uid 471 in its access list, which is svc-lamp: it gets 472"
is "the numbers of the services" "$(id -u svc-bell) $(id -u svc-lamp)" "471 472"
is "the owner of a service's file" "$(stat -c '%U:%G %u:%g %a' $key)" "svc-bell:svc-bell 471:471 640"
is "who may read it" "$(getfacl -cp $key | sed "/^$/d" | paste -sd ' ')" "user::rw- user:svc-lamp:r-- user:grace:r-- group::r-- mask::r-- other::---"
is "the last lines of passwd" "$(tail -n 3 /etc/passwd | paste -sd ' ')" "+@admins -guest +::::::"
is "flags" "$(lsattr /etc/resolv.conf /etc/events.log | cut -c5-6 | paste -sd ' ')" "i- -a"
