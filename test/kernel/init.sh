#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
#
# First process of the test machine: mount, load modules, run every test, power
# off. The harness reads the lines that begin with @@TOKEN; see qemu.go.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TMPDIR=/tmp

/bin/busybox --install -s /bin
read -r token </lbvm/token

say() { echo "@@$token $*"; }
die() {
	say broken "$*"
	dmesg | tail -n 30
	poweroff -f
}
# Bits of the taint mask that a test must not set: 7 died (oops), 9 warned.
tainted() { echo $(($(cat /proc/sys/kernel/tainted) & 640)); }

mount -t proc proc /proc || die mount /proc
mount -t sysfs sysfs /sys || die mount /sys
mount -t devtmpfs devtmpfs /dev || die mount /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp || die mount /tmp
mount -t tmpfs tmpfs /run || die mount /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup || die mount /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf || die mount /sys/fs/bpf
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount --make-rshared /
mkdir -p /run/netns
ln -sf /proc/self/fd /dev/fd
test -s /sys/kernel/btf/vmlinux || die no /sys/kernel/btf/vmlinux

# Only a panic may break into the tests' output from here on.
dmesg -n 1
while read -r module; do
	insmod "$module" || die insmod "$module"
done </lbvm/modules
hostname lbproxy-vm
ip link set lo up || die ip link set lo up

while read -r pair; do
	# shellcheck disable=SC2163 # pair is NAME=VALUE
	export "$pair"
done </lbvm/env
set --
while read -r arg; do
	set -- "$@" "$arg"
done </lbvm/args

say booted "$(uname -r)"
while read -r dir name; do
	say start "$name"
	cd "$dir" || die cd "$dir"
	before=$(tainted)
	./run.test "$@" </dev/null
	code=$?
	if [ "$(tainted)" != "$before" ]; then
		say warned "$name"
		dmesg | tail -n 60
	fi
	say exit "$code" "$name"
done </lbvm/tests
say finished
poweroff -f
