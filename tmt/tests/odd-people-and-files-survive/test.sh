#!/bin/bash
. ../lib.sh

# What was said before the shutdown.
plan=$(cat "$notes/plan")
has "the plan" "$plan" "merge  /etc/passwd  (merged by record)"
has "the plan" "$plan" "keep   /etc/resolv.conf  (changed here)"
has "the plan" "$plan" "keep   /etc/bell.d/key  (changed here)"
has "the plan" "$plan" "group: audio stood twice; it is one line now, with the members of both"
has "the plan" "$plan" "passwd: svc-bell has uid 472 in the image, and 471 here; files in /var keep 471"
key="/etc/bell.d/key"
has "the plan" "$plan" "$key belongs to uid 471, which is svc-bell no longer, but svc-lamp; svc-bell has 472"
has "the plan" "$plan" "$key has uid 472 in its access list, which is svc-lamp no longer, but svc-bell; svc-lamp has 471"
json=$(tr -d ' \n' <"$notes/plan.json")
row='"action":"merge","current":{[^}]*},"image":"changed","kind":"file","local":"changed","new":{[^}]*},"path":"passwd"'
is "rows for passwd in the plan as JSON" "$(grep -o "$row" <<<"$json" | wc -l)" 1
has "the plan as JSON" "$json" '"/etc/bell.d/keybelongstouid471'
has "the journal of the shutdown" "$(journalctl -b -1 -u composefs-finalize -o cat)" "$key belongs to uid 471"

# Every line, where it was.
for file in passwd group shadow gshadow; do
  is "the lines after the first of $file" "$(sed -n 2,3p /etc/$file)" "$(printf '# of this site\n')"
  is "local lines that $file lacks" "$(grep -vxFf /etc/$file "$notes/people-$file" | grep -v -e ^svc- -e ^audio: -e ^root: || true)" ""
done
is "the last lines of passwd" "$(tail -n 3 /etc/passwd | paste -sd ' ')" "+@admins -guest +::::::"
is "the last lines of group and shadow" "$(tail -qn 1 /etc/group /etc/shadow | paste -sd ' ')" "+::: +::::::::"
is "the group that stood twice" "$(grep ^audio: /etc/group)" "audio:x:29:grace"
is "the numbers of the services" "$(id -u svc-bell) $(id -u svc-lamp)" "472 471"
is "the groups of a local user" "$(id -nG grace)" "grace audio svc-bell"
is "what pwck and grpck find, and did not before" \
  "$(accounts_complaints /etc | grep -vxFf "$notes/complaints" | grep -vxFf <(accounts_complaints "$notes/etc-of-$(booted)"))" ""

# Flags, owners, access lists.
is "flags" "$(lsattr /etc/resolv.conf /etc/events.log | cut -c5-6 | paste -sd ' ')" "i- -a"
is "a file that may not be changed" "$(tail -n 1 /etc/resolv.conf)" "# of this site"
is "the numbers and the mode of a service's file" "$(stat -c '%u:%g %a' $key)" "471:471 640"
is "who may read it" "$(getfacl -cnp $key | sed "/^$/d" | paste -sd ' ')" "user::rw- user:472:r-- user:$(id -u grace):r-- group::r-- mask::r-- other::---"
has "what is handed down" "$(getfacl -cndp /etc/bell.d | paste -sd ' ')" "group:471:r--"

# All that is local is, and nothing else: the image's backups of account files, and the type conflict's node, are its own.
local_paths() { sed -nE 's|^[a-z]+ +(/etc/[^ ]+).*|\1|p' | grep -v -e '-$' -e demo.d/both.conf; }
is "what is local" "$(composefs-finalize etc status | local_paths)" "$(local_paths <"$notes/status")"
