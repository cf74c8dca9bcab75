# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC2034 # who sources it uses what it sets
# What the scripts of the e2e cluster share; they source it.

e2e=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$e2e/../.." && pwd)
cache=$root/.cache/e2e
bin=$cache/bin       # links to the programs
run=$cache/run       # what a running cluster has: logs, certificates, data
settings=$run/settings
prefix=lbe2e         # of network namespaces and cgroups

# What a cluster was started with; until then, what the caller says.
nodes=${NODES:-3} stack=${STACK:-dual} proxy=${PROXY:-lbproxy-ebpf}
# shellcheck disable=SC1090 # up.sh writes it
[[ ! -s $settings ]] || . "$settings"

cp4=172.30.0.10 cp6=fd00:30::10 # the control plane
service4=10.96.0.0/16 service6=fd00:10:96::/112
pods4=10.244.0.0/16 pods6=fd00:10:244::/56
export KUBECONFIG=$run/pki/admin.conf

# Of node N, a digit.
node_pods4() { echo "10.244.$1.0/24"; }
node_pods6() { echo "fd00:10:244:$1::/64"; }
node_ip4() { echo "172.30.0.1$1"; }
node_ip6() { echo "fd00:30::1$1"; }

# both IPV4 IPV6 [SEPARATOR]: what a cluster of this stack has of the two
both() { if [[ $stack == dual ]]; then echo "$1${3:-,}$2"; else echo "$1"; fi; }

say() { echo "$(date +%T) $*"; }
die() {
	echo "error: $*" >&2
	exit 1
}

# within SECONDS COMMAND...: tries it until it succeeds
within() {
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		((SECONDS < end)) || return 1
		sleep 0.2
	done
}

netns() { # NAME COMMAND...
	local name=$1
	shift
	ip netns exec "$prefix-$name" "$@"
}

kubectl() { netns cp "$bin/kubectl" "$@"; }

# daemon NETNS NAME COMMAND...: runs it there until the cluster goes down. Its standard
# input never ends: test/cluster/etcd ends when its does.
daemon() {
	local ns=$1 name=$2
	shift 2
	[[ -p $run/alive ]] || mkfifo "$run/alive"
	setsid ip netns exec "$prefix-$ns" "$@" >>"$run/$name.log" 2>&1 0<>"$run/alive" &
}

# node_cgroups N: its directory in each hierarchy, below the cgroup of this shell
node_cgroups() {
	local _ controllers path mount
	while IFS=: read -r _ controllers path; do
		case $controllers in
		'') mount=/sys/fs/cgroup/unified ;;
		name=*) mount=/sys/fs/cgroup/${controllers#name=} ;;
		*) mount=/sys/fs/cgroup/$controllers ;;
		esac
		[[ -n $controllers || -d $mount ]] || mount=/sys/fs/cgroup # v2 alone
		[[ ! -d $mount ]] || echo "$mount${path%/}/$prefix-node$1"
	done </proc/self/cgroup
}

# enter_cgroups N: moves this shell there
enter_cgroups() {
	local dir
	while read -r dir; do echo "$BASHPID" >"$dir/cgroup.procs"; done <"$run/node$1/cgroups"
}

# in_node N COMMAND...: runs it in all namespaces and cgroups of node N
in_node() {
	local n=$1
	shift
	(
		enter_cgroups "$n"
		exec nsenter -t "$(<"$run/node$n/pid")" -m -n -p -u -i -C -- "$@"
	)
}

# node_daemon N NAME COMMAND...: the same, until the node goes down
node_daemon() {
	local n=$1 name=$2
	shift 2
	(
		enter_cgroups "$n"
		exec setsid nsenter -t "$(<"$run/node$n/pid")" -m -n -p -u -i -C -- "$@" \
			>>"$run/node$n/$name.log" 2>&1 </dev/null
	) &
}
