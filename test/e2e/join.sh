#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Starts node N of the e2e cluster: a container of its own with containerd and kubelet.
# usage: join.sh N
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
n=$1 dir=$run/node$1
mkdir -p "$dir"

container() {
	local parent cgroup
	node_cgroups "$n" >"$dir/cgroups"
	while read -r cgroup; do
		mkdir -p "$cgroup"
		parent=${cgroup%/*}
		[[ ! -e $cgroup/cpuset.cpus || $cgroup == */unified/* ]] || { # version 1 starts with none
			cat "$parent/cpuset.cpus" >"$cgroup/cpuset.cpus"
			cat "$parent/cpuset.mems" >"$cgroup/cpuset.mems"
		}
	done <"$dir/cgroups"
	(
		enter_cgroups "$n"
		exec setsid nsenter --net="/run/netns/$prefix-node$n" \
			unshare --mount --pid --fork --kill-child --uts --ipc --cgroup \
			"$e2e/node.sh" "$n" "$dir" >"$dir/init.log" 2>&1 </dev/null
	) &
	within 10 test -e "$dir/ready" || die "node$n: $(<"$dir/init.log")"
	pgrep -P $! >"$dir/pid"
}

network_plugin() {
	mkdir -p "$dir/fs/etc/cni/net.d"
	cat >"$dir/fs/etc/cni/net.d/10-pods.conflist" <<-JSON
		{"cniVersion": "0.4.0", "name": "pods", "plugins": [
		  {"type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam",
		    "ranges": [$(both "[{\"subnet\": \"$(node_pods4 "$n")\"}]" "[{\"subnet\": \"$(node_pods6 "$n")\"}]")],
		    "routes": [$(both '{"dst": "0.0.0.0/0"}' '{"dst": "::/0"}')]}},
		  {"type": "portmap", "capabilities": {"portMappings": true}}]}
	JSON
}

container_runtime() {
	local image socket=/run/containerd/containerd.sock
	cat >"$dir/containerd.toml" <<-TOML
		version = 3
		disabled_plugins = [
		  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
		  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.blockfile",
		]
		[grpc]
		  address = "$socket"
		[plugins.'io.containerd.cri.v1.images'.pinned_images]
		  sandbox = "registry.k8s.io/pause:3.10.2"
		[plugins.'io.containerd.cri.v1.runtime']
		  disable_apparmor = true
		  restrict_oom_score_adj = true # without CAP_SYS_RESOURCE it cannot be lowered
		  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
		    runtime_type = "io.containerd.runc.v2"
		    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
		      SystemdCgroup = false
		  [plugins.'io.containerd.cri.v1.runtime'.cni]
		    bin_dirs = ["/usr/lib/cni"]
		    conf_dir = "/etc/cni/net.d"
	TOML
	node_daemon "$n" containerd env PATH="$bin:$PATH" "$bin/containerd" --config "$dir/containerd.toml"
	within 30 in_node "$n" test -S "$socket" || die "node$n: containerd does not listen"
	for image in "$cache"/images/*.tar; do
		within 30 in_node "$n" "$bin/ctr" -n k8s.io images import --local --digests=false "$image" || die "node$n: import of $image"
	done
}

kubelet() {
	echo "nameserver 192.0.2.53" >"$dir/resolv.conf" # there is no other DNS
	cat >"$dir/kubelet.yaml" <<-YAML
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		address: "::"
		authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $run/pki/ca.crt}}
		authorization: {mode: Webhook}
		cgroupDriver: cgroupfs
		failCgroupV1: false
		failSwapOn: false
		clusterDNS: [10.96.0.10]
		clusterDomain: cluster.local
		containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
		resolvConf: $dir/resolv.conf
		evictionHard: {memory.available: 100Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
		imageGCHighThresholdPercent: 100
		enforceNodeAllocatable: []
		kubeAPIQPS: 100
		kubeAPIBurst: 200
	YAML
	node_daemon "$n" kubelet env PATH="$bin:$PATH" "$bin/kubelet" --config="$dir/kubelet.yaml" \
		--kubeconfig="$run/pki/node$n.conf" --hostname-override="node$n" \
		--node-labels="topology.kubernetes.io/zone=zone$(((n - 1) % 3 + 1))" \
		--node-ip="$(both "$(node_ip4 "$n")" "$(node_ip6 "$n")")" -v=2
}

container
network_plugin
container_runtime
kubelet
say "node$n"
