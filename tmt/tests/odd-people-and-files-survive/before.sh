#!/bin/bash
. ../lib.sh
# A user of this machine, lines of no user, a group that a setup script appends at each of its runs, a directory service.
useradd -M -G svc-bell grace
for file in passwd group shadow gshadow; do sed -i '1a # of this site\n' /etc/$file; done
echo "audio:x:29:grace" >>/etc/group
printf '+@admins\n-guest\n+::::::\n' >>/etc/passwd
echo "+:::" >>/etc/group
echo "+::::::::" >>/etc/shadow
# Files that programs shall leave alone.
echo "# of this site" >>/etc/resolv.conf
chattr +i /etc/resolv.conf
echo first >/etc/events.log
chattr +a /etc/events.log
# A file of a service whose number is another one's in the image; a person and the other service may read it.
mkdir -m 750 /etc/bell.d
echo secret >/etc/bell.d/key
chmod 640 /etc/bell.d/key
chown -R svc-bell:svc-bell /etc/bell.d
setfacl -m u:svc-lamp:r,u:grace:r /etc/bell.d/key
setfacl -d -m g:svc-bell:r /etc/bell.d
for file in passwd group shadow gshadow; do cp -p /etc/$file "$notes/people-$file"; done
accounts_complaints /etc >"$notes/complaints"
composefs-finalize etc status >"$notes/status"
composefs-finalize plan >"$notes/plan"
composefs-finalize plan --json >"$notes/plan.json"
