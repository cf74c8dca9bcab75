#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The first process of a node, in namespaces of its own (mounts, processes, names, IPC,
# cgroups; the network is the node's already): mounts what a node has to itself and then
# only waits. When it ends, so does everything in the node.
# usage: node.sh N DIRECTORY
set -euo pipefail
n=$1 dir=$2

mount --make-rprivate /
hostname "node$n"
mount -t proc proc /proc

umount -R /sys
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
while IFS=: read -r _ controllers _; do
	case $controllers in
	'')
		mkdir /sys/fs/cgroup/unified
		mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
		;;
	*)
		mkdir "/sys/fs/cgroup/${controllers#name=}"
		[[ $controllers != name=* ]] || controllers=none,$controllers
		mount -t cgroup -o "$controllers" cgroup "/sys/fs/cgroup/${controllers#*name=}"
		;;
	esac
done </proc/self/cgroup
mount -t bpf bpf /sys/fs/bpf

mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/netns /run/lock
for path in /var/lib/{kubelet,containerd,cni} /var/log /etc/{cni,kubernetes}; do
	mkdir -p "$dir/fs$path" "$path"
	mount --bind "$dir/fs$path" "$path"
done

# The kubelet writes settings of the whole machine: here it writes to files.
while read -r name value; do
	echo "$value" >"$dir/${name//\//.}"
	mount --bind "$dir/${name//\//.}" "/proc/sys/$name"
done <<-SETTINGS
	vm/overcommit_memory 1
	vm/panic_on_oom 0
	kernel/panic 10
	kernel/panic_on_oops 1
	kernel/keys/root_maxkeys 1000000
	kernel/keys/root_maxbytes 25000000
SETTINGS

mount --make-rshared /
touch "$dir/ready"
trap 'exit 0' TERM INT
while :; do
	sleep 3600 &
	wait $! || true
done
