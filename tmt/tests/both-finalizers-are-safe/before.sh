#!/bin/bash
. ../lib.sh
# A stand-in for bootc's own unit, ordered as bootc's: into etc in place, then the exchange. Gone with /run.
file=/run/bootc-stand-in
case $entries in
  $esp/*) what=$(findmnt -no SOURCE $esp) ;;
  /run/test-boot/*) what=$(findmnt -no SOURCE "$boot") ;;
  *) what= ;;
esac
relative=${entries#"$esp"} relative=${relative#/run/test-boot}
cat >$file <<END
set -eux
[ -e /run/composefs/staged-deployment ] || { echo "no marker: nothing to do"; exit 0; }
touch $(state "$(noted staged)")/etc/bootc-was-here
if [ -n "$what" ]; then mkdir -p $file-boot && mount "$what" $file-boot && cd $file-boot; fi
mv --exchange --no-copy -T .$relative .$relative.staged
END
[ -n "$what" ] || sed -i 's| \./| /|g' $file
cat >/run/systemd/system/bootc-finalize-staged.service <<END
[Unit]
DefaultDependencies=no
RequiresMountsFor=/sysroot
After=local-fs.target systemd-journal-flush.service
Before=basic.target final.target
Conflicts=final.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/sh $file
END
systemctl daemon-reload
systemctl start bootc-finalize-staged
note both "$(systemctl is-active bootc-finalize-staged composefs-finalize | paste -sd ' ')"
