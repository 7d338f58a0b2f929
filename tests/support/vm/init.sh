#!/bin/sh
# The guest's first process: bring the network card up, then run the commands that come over the serial console.
#
# A command is a line "TOKEN COMMAND". Its output is followed by a line "TOKEN STATUS", which the token makes unlike
# anything that a command prints.

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
# No echo, no translation of line ends, no limit on the length of a line.
stty raw -echo
while read -r module; do
    insmod "/modules/$module"
done </modules/order
ip link set lo up
ip link set eth0 up
printf '\n@ready\n'
# In a process of its own: the shell's "read" begins the line anew when a child ends, and the first process inherits all
# that were left behind.
while read -r token command; do
    (eval "$command") </dev/null
    printf '\n%s %d\n' "$token" "$?"
done </dev/ttyS0 &
wait
