#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs all of upstream's sig-network tests that a service proxy has a part in and that
# can run in this cluster, with one proxy, and keeps a list of each part in OUT. It takes
# an hour. Goes on after a failure, and says so in the end.
# usage: [PROXY=...] [OUT=DIRECTORY] full.sh
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
proxy=${PROXY:-lbproxy-ebpf}
lists=${OUT:-$cache/full-$(date +%m%d-%H%M%S)-$proxy}
mkdir -p "$lists"
trap '"$e2e/down.sh"' EXIT

# What cannot run here, whatever the proxy; results/reasons.txt says why of each.
never='Netpol|NetworkPolicy|SCTPConnectivity|Feature:Networking-|registry exposed via localhost|IPerf|Performance|\[Alpha\]'

status=0
stack=dual
part() { # NAME FOCUS SKIP
	say "$proxy: $1"
	OUT=$lists/$1 "$e2e/run.sh" "$2" "$3" >/dev/null || status=1
	tail -n 1 "$lists/$1/results.txt"
	{
		echo "# $proxy, $stack, $nodes nodes, ${PROCS:-6} at once, $(nproc) processors, Linux $(uname -r), $(date -u +%F)"
		cat "$lists/$1/results.txt"
	} >"$lists/$1.txt"
}

export PROXY=$proxy
STACK=dual "$e2e/up.sh"
part 1-services '\[sig-network\] Services should' '\[Disruptive\]|\[Serial\]|\[Alpha\]'
part 2-rest '\[sig-network\]' "\[sig-network\] Services should|Feature:LoadBalancer|\[Disruptive\]|\[Serial\]|$never"
PROCS=1 part 3-serial '\[sig-network\].*(\[Disruptive\]|\[Serial\])' "Feature:LoadBalancer|$never"
STACK=ipv4 "$e2e/up.sh"
stack=ipv4
part 4-loadbalancers '\[sig-network\].*Feature:LoadBalancer' '\[Disruptive\]|\[Alpha\]'
echo "lists are in $lists"
exit "$status"
