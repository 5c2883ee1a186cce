#!/bin/bash
. ../lib.sh

is "a file that the image changed" "$(cat /etc/demo.d/changed.conf)" "from = v2"
is "a file that the image added" "$(cat /etc/demo.d/added.conf)" "from = v2"
is "a file that the image dropped" "$(ls /etc/demo.d/dropped.conf 2>/dev/null)" ""
is "a system user that the image added" "$(id -nu tcpdump)" tcpdump
is "the image" "$(image_version)" 13.2
