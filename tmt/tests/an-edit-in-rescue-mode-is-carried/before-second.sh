#!/bin/bash
. ../lib.sh
# Nobody types here: what stands for the rescue shell edits a file, and reboots. Gone with /run.
cat >/run/systemd/system/rescue.service <<END
[Unit]
DefaultDependencies=no
Conflicts=shutdown.target
# Everything that rescue mode stops has been stopped.
After=sysinit.target composefs-finalize.service ssh.service
Before=shutdown.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'systemctl is-active composefs-finalize ssh | paste -sd " " >$notes/in-rescue'
ExecStart=/bin/sh -c 'echo "from = rescue" >/etc/rescue.conf'
ExecStart=systemctl --no-block reboot
END
systemctl daemon-reload
note reboot-by "systemctl --no-block isolate rescue.target"
