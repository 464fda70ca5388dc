#!/bin/busybox sh
# Mounts the root disk of the host, and hands over to its init.
/bin/busybox mkdir -p /bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for m in @MODULES@; do insmod $m; done
root=$(sed -n 's/.*vmm.root=\([^ ]*\).*/\1/p' /proc/cmdline)
for i in 1 2 3 4 5; do [ -b "$root" ] && break; sleep 1; done
mount -t ext4 -o noatime "$root" /root || exec poweroff -f
mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
exec switch_root /root /sbin/host-init
