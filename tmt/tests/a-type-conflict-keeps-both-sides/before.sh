#!/bin/bash
. ../lib.sh
rm /etc/demo.d/both.conf
mkdir /etc/demo.d/both.conf
echo "from = here" >/etc/demo.d/both.conf/inside
