#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Starts the e2e cluster, in place of one that is there: network, control plane, nodes,
# service proxy, DNS. What it is made of is in README.md.
# usage: [PROXY=...] [STACK=dual|ipv4] [NODES=3] up.sh
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

started=$SECONDS
proxy=${PROXY:-lbproxy-ebpf} stack=${STACK:-dual} nodes=${NODES:-3}
case $proxy in
lbproxy-ebpf | lbproxy-iptables | kube-proxy-iptables | kube-proxy-nftables) ;;
*) die "PROXY is lbproxy-ebpf, lbproxy-iptables, kube-proxy-iptables or kube-proxy-nftables, not $proxy" ;;
esac
[[ $nodes == [1-9] ]] || die "NODES is 1 to 9, not $nodes"
"$e2e/down.sh"
mkdir -p "$run"
printf '%s=%s\n' proxy "$proxy" stack "$stack" nodes "$nodes" >"$settings"
mapfile -t every < <(seq "$nodes")
trap '[[ $? == 0 ]] || echo "logs are in $run; make cluster-down removes the rest" >&2' EXIT

namespace() { # NAME
	ip netns add "$prefix-$1"
	ip -n "$prefix-$1" link set lo up
}

# link NAME DEVICE IPV4 IPV6 ROUTER4 ROUTER6: connects a namespace to the fabric's DEVICE
link() {
	ip -n "$prefix-fabric" link add "$2" type veth peer name eth0 netns "$prefix-$1"
	ip -n "$prefix-fabric" link set "$2" up
	ip -n "$prefix-$1" addr add "$3/24" dev eth0
	ip -n "$prefix-$1" addr add "$4/64" dev eth0 nodad
	ip -n "$prefix-$1" link set eth0 up
	ip -n "$prefix-$1" route add default via "$5"
	ip -n "$prefix-$1" -6 route add default via "$6"
}

routers() { # NAME...: let them forward
	local name
	for name; do netns "$name" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; done
}

network() {
	local n other name
	namespace fabric
	routers fabric
	netns fabric sysctl -qw net.ipv4.fib_multipath_hash_policy=1 net.ipv6.fib_multipath_hash_policy=1
	ip -n "$prefix-fabric" link add nodes type bridge
	ip -n "$prefix-fabric" addr add 172.30.0.1/24 dev nodes
	ip -n "$prefix-fabric" addr add fd00:30::1/64 dev nodes nodad
	ip -n "$prefix-fabric" link set nodes up
	for name in cp "${every[@]/#/node}"; do
		n=${name#node}
		namespace "$name"
		if [[ $name == cp ]]; then set -- "$cp4" "$cp6"; else set -- "$(node_ip4 "$n")" "$(node_ip6 "$n")"; fi
		link "$name" "$name" "$1" "$2" 172.30.0.1 fd00:30::1
		ip -n "$prefix-fabric" link set "$name" master nodes
	done
	routers "${every[@]/#/node}"
	for n in "${every[@]}"; do
		for other in fabric cp "${every[@]/#/node}"; do
			[[ $other != "node$n" ]] || continue
			ip -n "$prefix-$other" route add "$(node_pods4 "$n")" via "$(node_ip4 "$n")"
			ip -n "$prefix-$other" -6 route add "$(node_pods6 "$n")" via "$(node_ip6 "$n")"
		done
	done
	namespace client # outside the cluster, behind a router
	link client client 172.31.0.2 fd00:31::2 172.31.0.1 fd00:31::1
	ip -n "$prefix-fabric" addr add 172.31.0.1/24 dev client
	ip -n "$prefix-fabric" addr add fd00:31::1/64 dev client nodad
}

api_server() {
	local pki=$run/pki
	daemon cp etcd "$bin/etcd" --data-dir "$run/etcd" --unsafe-no-fsync --log-level warn \
		--listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
		--listen-peer-urls http://127.0.0.1:2380
	daemon cp kube-apiserver "$bin/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 \
		--advertise-address="$cp4" --bind-address=:: --secure-port=6443 \
		--service-cluster-ip-range="$(both $service4 $service6)" --authorization-mode=Node,RBAC \
		--enable-admission-plugins=NodeRestriction --allow-privileged=true \
		--client-ca-file="$pki/ca.crt" --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
		--kubelet-client-certificate="$pki/kubelet-client.crt" --kubelet-client-key="$pki/kubelet-client.key" \
		--kubelet-preferred-address-types=InternalIP \
		--service-account-issuer=https://kubernetes.default.svc.cluster.local \
		--service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
		--requestheader-client-ca-file="$pki/front-proxy-ca.crt" --requestheader-allowed-names=front-proxy-client \
		--requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
		--requestheader-extra-headers-prefix=X-Remote-Extra- \
		--proxy-client-cert-file="$pki/front-proxy.crt" --proxy-client-key-file="$pki/front-proxy.key"
	within 90 kubectl get --raw /readyz || die "the API server is not ready"
}

controllers() {
	local pki=$run/pki
	daemon cp kube-controller-manager "$bin/kube-controller-manager" --kubeconfig="$pki/kube-controller-manager.conf" \
		--use-service-account-credentials --service-account-private-key-file="$pki/sa.key" --root-ca-file="$pki/ca.crt" \
		--cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" \
		--cluster-cidr="$(both $pods4 $pods6)" --service-cluster-ip-range="$(both $service4 $service6)" \
		--allocate-node-cidrs=false --leader-elect=false
	daemon cp kube-scheduler "$bin/kube-scheduler" --kubeconfig="$pki/kube-scheduler.conf" --leader-elect=false
	daemon fabric loadbalancer "$bin/loadbalancer" --kubeconfig="$KUBECONFIG"
}

# service_proxy: what makes Services work
service_proxy() {
	local n
	case $proxy in
	lbproxy-*) "$e2e/lbproxy.sh" ;;
	kube-proxy-*)
		for n in "${every[@]}"; do
			cat >"$run/node$n/kube-proxy.yaml" <<-YAML
				apiVersion: kubeproxy.config.k8s.io/v1alpha1
				kind: KubeProxyConfiguration
				mode: ${proxy#kube-proxy-}
				clusterCIDR: $(both $pods4 $pods6)
				clientConnection: {kubeconfig: $run/pki/kube-proxy.conf}
				hostnameOverride: node$n
				conntrack: {maxPerCore: 0, min: 0}
			YAML
			node_daemon "$n" kube-proxy "$bin/kube-proxy" --config="$run/node$n/kube-proxy.yaml" -v=2
		done
		;;
	esac
}

say "network of $nodes nodes, $stack"
"$e2e/pki.sh"
network
say "control plane"
api_server
controllers
say "nodes"
for n in "${every[@]}"; do "$e2e/join.sh" "$n"; done
for n in "${every[@]}"; do
	within 60 kubectl get node "node$n" || die "node$n did not register"
	kubectl patch node "node$n" -p "{\"spec\":{\"podCIDR\":\"$(node_pods4 "$n")\",\"podCIDRs\":[\"$(both "$(node_pods4 "$n")" "$(node_pods6 "$n")" '","')\"]}}" >/dev/null
done
say "$proxy"
service_proxy
kubectl wait --for=condition=Ready node --all --timeout=90s >/dev/null
kubectl apply -f "$e2e/coredns.yaml" >/dev/null
kubectl -n kube-system rollout status deployment/coredns --timeout=120s >/dev/null
say "up after $((SECONDS - started)) s: ${proxy}, $stack, $nodes nodes"
