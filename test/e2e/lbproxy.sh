#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Installs lbproxy in the e2e cluster: its image on every node, and deploy/daemonset.yaml
# with what an installation has to say, by kustomize. It is installed in kube-system and
# its pods have kube-proxy's label, because an upstream test looks there for what it
# restarts; the rest is as the file has it.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

archive=$root/dist/lbproxy.oci.tar
[[ -e $archive ]] || die "no $archive: make image"
for ((n = 1; n <= nodes; n++)); do
	within 30 in_node "$n" "$bin/ctr" -n k8s.io images import --local --digests=false "$archive" || die "node$n: import of $archive"
done
image=$(in_node 1 "$bin/ctr" -n k8s.io images list -q 2>/dev/null | awk '/\/lbproxy:/ && !n++')

dir=$run/lbproxy
mkdir -p "$dir"
cp "$root/deploy/daemonset.yaml" "$dir/"
# The limits of connection tracking belong to the machine, so they stay as they are.
cat >"$dir/kustomization.yaml" <<YAML
resources: [daemonset.yaml]
namespace: kube-system
images:
  - {name: lbproxy, newName: "${image%:*}", newTag: "${image##*:}"}
labels:
  - pairs: {k8s-app: kube-proxy}
    includeTemplates: true
patches:
  - patch: |
      \$patch: delete
      apiVersion: v1
      kind: Namespace
      metadata: {name: lbproxy}
  - patch: |
      apiVersion: v1
      kind: ConfigMap
      metadata: {name: lbproxy, namespace: lbproxy}
      data:
        kubernetes-service-host: $cp4
        kubernetes-service-port: "6443"
        config.yaml: |
          apiVersion: lbproxy.io/v1alpha1
          kind: ProxyConfiguration
          dataplane: ${proxy#lbproxy-}
          clusterCIDR: ["$(both $pods4 $pods6 '", "')"]
          bpffs: /sys/fs/bpf
          cgroupRoot: /sys/fs/cgroup/unified
          stateDir: /run/lbproxy
          conntrackMaxPerCore: 0
          conntrackMin: 0
YAML
kubectl apply -k "$dir" >/dev/null
kubectl -n kube-system rollout status daemonset/lbproxy --timeout=120s >/dev/null
