#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Replaces lbproxy's pods on every node of the e2e cluster, as an update does, while
# clients in pods and outside hold and make connections. Fails if one of them notices.
# usage: restart.sh
set -euo pipefail
# shellcheck source=traffic.sh
. "$(dirname "$0")/traffic.sh"

[[ -s $settings && $proxy == lbproxy-* ]] || die "no cluster with lbproxy: make cluster-up"
trap 'traffic_down || true' EXIT

pods() { kubectl -n kube-system get pods -l app.kubernetes.io/name=lbproxy -o name | sort; }

traffic_up
before=$(pods)
event "rollout restart of daemonset/lbproxy"
kubectl -n kube-system rollout restart daemonset/lbproxy >/dev/null
kubectl -n kube-system rollout status daemonset/lbproxy --timeout=300s >/dev/null
event "rolled out"
same=$(comm -12 <(echo "$before") <(pods))
[[ -z $same ]] || die "not replaced: $same"
traffic_end
say "$proxy was replaced on $nodes nodes, and no client noticed"
