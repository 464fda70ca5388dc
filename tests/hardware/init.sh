#!/bin/bash
# The init of the host: modules, the disk of the tests, the job; then off.
# What the tests say goes to the second serial port; a byte 1 begins the lines that
# are for who started the host.
export PATH=/work/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=vt100 LC_ALL=C.UTF-8 USER=root LOGNAME=root
mkdir -p /dev/pts /dev/shm /run /work
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t debugfs debugfs /sys/kernel/debug
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd # as a distribution's init does
for i in 0:stdin 1:stdout 2:stderr; do ln -s fd/${i%:*} /dev/${i#*:}; done
ip link set lo up
hostname hardware
kvm=kvm_amd
grep -q -w vmx /proc/cpuinfo && kvm=kvm_intel
argument() { sed -n "s/.*$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
for m in $kvm vhost_vsock vhost_net tun nbd overlay fuse loop; do modprobe $m || echo "no module $m"; done
mount -t ext4 -o noatime "$(argument vmm.tests)" /work || echo "no disk of tests"
stty -F /dev/ttyS1 115200 raw -echo -onlcr
while sleep 5; do printf '\001alive\n' > /dev/ttyS1; done &
mkdir -p /run/user
export XDG_RUNTIME_DIR=/run/user XDG_CACHE_HOME=/work/cache VMM_TEST_PROGRAMS=/work/bin TMPDIR=/work/tmp
mkdir -p $TMPDIR
cd /work/src
script=$(argument vmm.job | base64 -d)
printf '\001begin\n' > /dev/ttyS1
bash -c "$script" < /dev/null > /dev/ttyS1 2>&1
printf '\n\001end %d\n' $? > /dev/ttyS1
dmesg | grep -iE 'kvm|unhandled|bug|oops' > /dev/ttyS0
sync
echo o > /proc/sysrq-trigger
sleep 100
