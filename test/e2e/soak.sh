#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Changes the e2e cluster all the time while clients in pods and outside hold and make
# connections: pods come and go, nodes are drained, Services are made and deleted,
# algorithms are switched, lbproxy's own pods end. Fails if a new TCP connection fails or a
# held one breaks, if lbproxy had to repair or to correct anything, or if its tables do
# not go back to what they were.
# usage: soak.sh [DURATION], 10m or 1h
set -euo pipefail
# shellcheck source=traffic.sh
. "$(dirname "$0")/traffic.sh"

[[ -s $settings && $proxy == lbproxy-* ]] || die "no cluster with lbproxy: make cluster-up"
case ${1:-1h} in
*h) duration=$((${1%h} * 3600)) ;;
*m) duration=$((${1%m} * 60)) ;;
*) die "DURATION is like 10m or 1h, not $1" ;;
esac
algorithms=(random round-robin least-connection power-of-two hash ip-hash least-time)

k() { kubectl -n traffic "$@" >/dev/null; }

settled() { k rollout status deployment/rolling --timeout=180s; }

# metrics NODE: those that the soak is about
metrics() {
	in_node "$1" curl -sf http://127.0.0.1:10249/metrics | grep -E \
		'^(lbproxy_(connections_corrected_total|audit_differences_total|sync_failures_total|services_failed|services|backends|map_entries.*)|process_resident_memory_bytes) '
}

snapshot() { # NAME
	local n
	for ((n = 1; n <= nodes; n++)); do metrics "$n" | sed "s/^/node$n /"; done >"$traffic/$1.metrics"
}

# tables NAME: what a snapshot has of Services, which does not depend on traffic
tables() {
	grep -E 'lbproxy_(services|backends) |map="(services|frontends|backends|slots)"' "$traffic/$1.metrics"
}

tables_are_as_before() {
	snapshot after
	diff <(tables before) <(tables after)
}

# churn ROUND: one round of changes
churn() {
	local i node=node$(($1 % nodes + 1)) algorithm=${algorithms[$1 % ${#algorithms[@]}]}
	event "scale to 8"
	k scale deployment/rolling --replicas=8
	settled
	event "scale to 4"
	k scale deployment/rolling --replicas=4
	settled
	event "$algorithm"
	k annotate --overwrite service steady rolling lbproxy.io/algorithm="$algorithm"
	event "rolling update, maxSurge 50%"
	k patch deployment/rolling -p '{"spec":{"strategy":{"rollingUpdate":{"maxSurge":"50%","maxUnavailable":0}}}}'
	k rollout restart deployment/rolling
	settled
	event "rolling update, maxUnavailable 50%"
	k patch deployment/rolling -p '{"spec":{"strategy":{"rollingUpdate":{"maxSurge":0,"maxUnavailable":"50%"}}}}'
	k rollout restart deployment/rolling
	settled
	event "20 Services made"
	for i in {1..20}; do k create service nodeport "churn-$i" --tcp=80:8080; done
	event "drain of $node"
	k drain "$node" --ignore-daemonsets --force --delete-emptydir-data --timeout=120s
	settled
	event "$node is back"
	k uncordon "$node"
	event "20 Services deleted"
	for i in {1..20}; do k delete service "churn-$i"; done
	snapshot "round-$(printf %04d "$1")" # the pod that ends takes its counters along
	event "lbproxy's pod on $node is deleted"
	kubectl -n kube-system delete pod -l app.kubernetes.io/name=lbproxy --field-selector "spec.nodeName=$node" >/dev/null
	kubectl -n kube-system rollout status daemonset/lbproxy --timeout=120s >/dev/null
}

# growth: memory of each agent in each round, in MB
growth() {
	local n
	for ((n = 1; n <= nodes; n++)); do
		awk -v node="node$n" 'BEGIN { printf "%s: MB after each round:", node }
			$1 == node && /resident/ { printf " %.0f", $3 / 1e6 }
			END { print "" }' "$traffic"/round-*.metrics
	done
}

trap 'kubectl uncordon --all >/dev/null 2>&1 || true; traffic_down || true' EXIT
traffic_up
k annotate --overwrite service steady rolling lbproxy.io/algorithm=random
snapshot before
end=$((SECONDS + duration)) round=0
while ((SECONDS < end)); do churn $((round++)); done

status=0
k annotate --overwrite service steady rolling lbproxy.io/algorithm=random
event "the end: $round rounds"
traffic_end || status=1
within 60 tables_are_as_before || {
	status=1
	echo "tables are not as they were:"
	tables_are_as_before || true
}
never_restarted kube-system app.kubernetes.io/name=lbproxy || status=1
if grep -hE '(corrected|differences|failures)_total [^0]|services_failed [^0]' "$traffic"/*.metrics; then status=1; fi
growth
exit "$status"
