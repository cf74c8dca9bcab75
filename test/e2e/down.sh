#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Ends the e2e cluster and removes what it has: processes, network namespaces, cgroups,
# data. It finds them by their names, so that what a killed script left goes, too. Logs
# stay, in .cache/e2e/logs.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

mapfile -t namespaces < <(ip netns list 2>/dev/null | awk -v prefix="$prefix-" 'index($1, prefix) == 1 { print $1 }')

# The first process of a node is among these, and takes its pods with it.
gone() {
	local pids
	pids=$(for ns in "${namespaces[@]}"; do ip netns pids "$ns"; done)
	[[ -n $pids ]] || return 0
	xargs kill -KILL <<<"$pids" 2>/dev/null || true
	return 1
}
within 30 gone || die "processes of $prefix do not end"
for ns in "${namespaces[@]}"; do ip netns delete "$ns"; done

# no_cgroups: removes those of nodes, deepest first; the kernel needs a moment for each
no_cgroups() {
	find /sys/fs/cgroup -depth -type d -path "*/$prefix-node*" -exec rmdir {} + || true
	[[ -z $(find /sys/fs/cgroup -type d -name "$prefix-node*" -print -quit) ]]
}
within 30 no_cgroups || echo "cgroups of $prefix are still used" >&2

if [[ -d $run ]]; then
	rm -rf "$cache/logs"
	mkdir -p "$cache/logs"
	(cd "$run" && find . -name '*.log' -not -path '*/fs/*' -exec cp --parents {} "$cache/logs" \;)
	rm -rf "$run"
fi
