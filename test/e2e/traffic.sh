# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Clients that hold and make connections while something happens to the e2e cluster: in a
# pod on every node, and outside. Sourced.

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
traffic=$run/traffic

# event TEXT: says and keeps what is done to the cluster from now on
event() {
	say "$*"
	echo "$(date -u +%FT%T.%3NZ) $*" >>"$traffic/events"
}

# addresses SERVICE: cluster IPs, then those of the load balancer, with brackets
addresses() {
	kubectl -n traffic get service "$1" \
		-o jsonpath='{range .spec.clusterIPs[*]}{@}{"\n"}{end}{range .status.loadBalancer.ingress[*]}{.ip}{"\n"}{end}' |
		sed 's/.*:.*/[&]/'
}

node_port() { # SERVICE PROTOCOL
	kubectl -n traffic get service "$1" -o jsonpath="{.spec.ports[?(@.name=='$2')].nodePort}"
}

has_address() { # SERVICE
	[[ -n $(kubectl -n traffic get service "$1" -o jsonpath='{.status.loadBalancer.ingress}') ]]
}

# targets_of SERVICE: every address that Services have, once for TCP and once for UDP; the
# NodePort is that of node 1
targets_of() {
	local address protocol
	for address in $(addresses "$1"); do
		for protocol in tcp udp; do echo "$protocol://$address:80"; done
	done
	for protocol in tcp udp; do echo "$protocol://$(node_ip4 1):$(node_port "$1" $protocol)"; done
}

# clients: a DaemonSet whose pods load both Services
clients() {
	local service held
	cat <<-YAML
		apiVersion: apps/v1
		kind: DaemonSet
		metadata: {name: client, namespace: traffic}
		spec:
		  selector: {matchLabels: {app: client}}
		  template:
		    metadata: {labels: {app: client}}
		    spec:
		      terminationGracePeriodSeconds: 5
		      tolerations: [{operator: Exists}]
		      containers:
	YAML
	for service in steady rolling; do
		held=2
		[[ $service == steady ]] || held=0 # those end with its pods
		cat <<-YAML
			        - name: $service
			          image: docker.io/lbproxy-e2e/traffic:1
			          imagePullPolicy: Never
			          env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
			          args: [load, -held=$held, -name=pod \$(NODE), $(targets_of $service | sed 's/.*/"&"/' | paste -sd ,)]
		YAML
	done
}

is_steady() { # FILE: its client has every connection that it shall hold
	grep -q '"steady":true' "$1"
}

# traffic_up: returns when all connections are held
traffic_up() {
	local service held pod
	rm -rf "$traffic"
	mkdir -p "$traffic"
	traffic_down
	kubectl apply -f "$e2e/traffic.yaml" >/dev/null
	for service in steady rolling; do within 60 has_address $service || die "$service has no load balancer"; done
	kubectl -n traffic rollout status daemonset/steady --timeout=120s >/dev/null
	kubectl -n traffic rollout status deployment/rolling --timeout=120s >/dev/null
	clients >"$traffic/clients.yaml"
	kubectl apply -f "$traffic/clients.yaml" >/dev/null
	kubectl -n traffic rollout status daemonset/client --timeout=120s >/dev/null
	for service in steady rolling; do
		held=2
		[[ $service == steady ]] || held=0
		mapfile -t targets < <(targets_of $service | grep -v '//10\.96\.\|//\[fd00:10:96:') # cluster IPs are for the cluster
		daemon client "traffic/outside-$service" "$bin/traffic" load -held=$held -name=outside "${targets[@]}"
		echo $! >>"$traffic/pids"
	done
	within 60 all_steady || die "not every connection could be made: $traffic"
	event "all connections are held" # what fails from now on counts
}

all_steady() {
	local file
	traffic_logs
	for file in "$traffic"/*.log; do is_steady "$file" || return 1; done
}

# traffic_logs: what clients have written so far, into files
traffic_logs() {
	local pod service
	for pod in $(kubectl -n traffic get pods -l app=client -o name); do
		for service in steady rolling; do
			kubectl -n traffic logs "$pod" -c $service >"$traffic/${pod#pod/}-$service.log"
		done
	done
}

# never_restarted NAMESPACE SELECTOR: fails, and says so, if a container of these pods
# ended: what it had counted is lost
never_restarted() {
	local restarts
	restarts=$(kubectl -n "$1" get pods -l "$2" -o jsonpath='{range .items[*]}{.metadata.name} {.status.containerStatuses[*].restartCount}{"\n"}{end}')
	! grep -E ' [1-9]' <<<"$restarts" || {
		echo "these containers of $2 ended so often" >&2
		return 1
	}
}

# traffic_end: what was seen, as a table; fails if anything failed
traffic_end() {
	sleep 6 # what fails now is noticed within 5 s
	traffic_logs
	never_restarted traffic app=client || return 1
	"$bin/traffic" sum -events "$traffic/events" "$traffic"/*.log
}

traffic_down() {
	[[ ! -s $traffic/pids ]] || xargs kill <"$traffic/pids" 2>/dev/null || true
	rm -f "$traffic/pids"
	kubectl delete namespace traffic --ignore-not-found --timeout=120s >/dev/null
}
