#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs upstream's tests in the cluster that is up, from the client outside it, and prints
# one line for each. Exits with an error if one failed or none ran.
# usage: [PROCS=6] [OUT=DIRECTORY] run.sh FOCUS [SKIP]
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

[[ -s $settings ]] || die "no cluster: make cluster-up"
focus=$1 skip=${2:-}
out=${OUT:-$cache/e2e-$(date +%m%d-%H%M%S)-$proxy}
mkdir -p "$out"
started=$SECONDS
code=0
netns client env PATH="$bin:$PATH" "$bin/ginkgo" --procs="${PROCS:-6}" --focus="$focus" ${skip:+--skip="$skip"} \
	--timeout=24h --poll-progress-after=180s --no-color "$bin/suite.test" -- \
	--provider=skeleton --kubeconfig="$KUBECONFIG" --kubectl-path="$bin/kubectl" --num-nodes="$nodes" \
	--report-dir="$out" --disable-log-dump --allowed-not-ready-nodes=0 \
	--system-pods-startup-timeout=1m --node-schedulable-timeout=1m \
	>"$out/log" 2>&1 </dev/null || code=$?
(cd "$root" && go run ./test/e2e/report list "$out"/junit*.xml) | tee "$out/results.txt"
echo "$proxy, $stack, $nodes nodes, $((SECONDS - started)) s; all that the tests said is in $out/log"
exit "$code"
