// SPDX-License-Identifier: Apache-2.0

package config

import (
	"github.com/lbproxy/lbproxy/internal/lb"
)

// The sections of the table, as the documentation has them.
const (
	sectionSource   = "Where Services come from"
	sectionBalance  = "How connections are balanced"
	sectionNetwork  = "Addresses of the cluster and the node"
	sectionKernel   = "The dataplane"
	sectionTables   = "Sizes of the eBPF dataplane's tables"
	sectionIPTables = "The iptables dataplane"
	sectionHealth   = "Health of backends"
	sectionTracking = "Connection tracking of the node"
	sectionProcess  = "The agent"
)

// register lists every field once: flags, variables, the file, their documentation and the
// schema come from here. live are those that a reload applies to the agent that runs
// (cmd/lbproxy/reload.go); others need a restart. The names of algorithms are the caller's,
// because this package knows none.
func (l *Loader) register(algorithms []string) {
	l.registerSource()
	l.registerBalance(algorithms)
	l.registerNetwork()
	l.registerKernel()
	l.registerTables()
	l.registerIPTables()
	l.registerHealth()
	l.registerTracking()
	l.registerProcess()
}

func (l *Loader) registerSource() {
	c := &l.config
	l.section = sectionSource
	add(l, &l.path, configFlag, "path", "read the configuration from this YAML file", text, format)
	add(l, &c.Kubeconfig, "kubeconfig", "path", "how to reach the API server; default: in-cluster", text, format)
	add(l, &c.Master, "master", "url", "the address of the API server, in place of that of kubeconfig or, in a pod, of the cluster IP, which nobody may serve yet", masterURL, format)
	add(l, &c.Manifests, "manifests", "dir", "take Services and EndpointSlices from the YAML files of this directory, not from an API server", text, format)
	add(l, &c.NodeName, "node-name", "name", "this node's name in the cluster; default: the host name", nodeName, format)
}

func (l *Loader) registerBalance(algorithms []string) {
	c := &l.config
	l.section = sectionBalance
	add(l, &c.Algorithm, "algorithm", "name", "how Services that choose no algorithm are balanced", known(algorithms), format).of(algorithms...).live()
	add(l, &c.SlowStart, "slow-start", "duration", "how long a new backend takes to get its full share, where a Service does not say it; 0s: no time", lb.ParseSlowStart, format).live()
	addBool(l, &c.NodeWeights, "node-weights", "follow the weights of Nodes, for which all Nodes are watched; false: only this one, and they do not count").live()
	add(l, &c.HashSeed, "hash-seed", "n", "what hash and ip-hash begin with, decimal or 0x hexadecimal; nodes of one seed choose alike", seed, format)
}

func (l *Loader) registerNetwork() {
	c := &l.config
	l.section = sectionNetwork
	add(l, &c.ClusterCIDR, "cluster-cidr", "list", "address ranges of the cluster's pods: callers from elsewhere are masqueraded", prefixes, formatPrefixes).live()
	add(l, &c.DetectLocalMode, "detect-local-mode", "name", "how pods are told from other callers: ClusterCIDR (their address is in cluster-cidr), NodeCIDR (it is in the Node's podCIDRs, which are followed; before they are known nobody is a pod), BridgeInterface or InterfaceNamePrefix (the device that their packets come from)", localMode, format).
		of(lb.LocalClusterCIDR.String(), lb.LocalNodeCIDR.String(), lb.LocalBridgeInterface.String(), lb.LocalInterfaceNamePrefix.String())
	add(l, &c.PodBridgeInterface, "pod-bridge-interface", "name", "the bridge that pods are behind, for detect-local-mode BridgeInterface", deviceName, format)
	add(l, &c.PodInterfaceNamePrefix, "pod-interface-name-prefix", "prefix", "what the names of pods' devices begin with, for detect-local-mode InterfaceNamePrefix", deviceName, format)
	add(l, &c.NodePortAddresses, "nodeport-addresses", "list", "serve NodePorts and health check ports only at the node's addresses within these ranges; primary: those of the Node object, localhost: loopback, all: every one; default: all", nodePortAddresses, formatNodePortAddresses).live()
	addBool(l, &c.MasqueradeAll, "masquerade-all", "masquerade every caller of a cluster IP on the packet path").live()
	addBool(l, &c.AllowExternalIPs, "allow-external-ips", "serve spec.externalIPs of Services").live()
}

func (l *Loader) registerKernel() {
	c := &l.config
	l.section = sectionKernel
	add(l, &c.Dataplane, "dataplane", "name", "ebpf, iptables, or auto: ebpf if this node can, else iptables", l.dataplane, format).of(Auto, EBPF, IPTables)
	add(l, &c.CgroupRoot, "cgroup-root", "dir", "attach socket programs to this cgroup v2 directory; default: the root of the mount", absolute, format)
	add(l, &c.BPFFS, "bpffs", "dir", "mount point of the bpffs that keeps maps and links", absolute, format)
	add(l, &c.StateDir, "state-dir", "dir", "directory for files that need not survive a reboot: the lock that keeps two agents apart, and the socket at which the agent is asked", absolute, format)
	add(l, &c.Devices, "devices", "list", "network devices to attach to, names or globs; auto: all but lo", devices, formatDevices)
	add(l, &c.AuditPeriod, "audit-period", "duration", "compare the kernel with what it should have once in this time, and repair it; 0s: never", periodOrNever, format).live()
}

func (l *Loader) registerTables() {
	c := &l.config
	l.section = sectionTables
	add(l, &c.MaxServices, "max-services", "n", "Service ports that the kernel's tables hold; 0: the dataplane's default, as below", count, format)
	add(l, &c.MaxFrontends, "max-frontends", "n", "addresses of Services that they hold", count, format)
	add(l, &c.MaxBackends, "max-backends", "n", "backends that they hold, once for each Service port", count, format)
	add(l, &c.MaxSlots, "max-slots", "n", "entries of all Services' tables: 8 and more for each, see docs/ARCHITECTURE.md", count, format)
	add(l, &c.MaxConnections, "max-connections", "n", "entries for connections of the packet path: 2 for each, 4 if masqueraded", count, format)
	add(l, &c.MaxFlows, "max-flows", "n", "entries for flows of unconnected UDP sockets: 2 for each", count, format)
	add(l, &c.MaxAffinities, "max-affinities", "n", "clients that are remembered for sessionAffinity, once for each Service port", count, format)
	add(l, &c.MaxSourceRanges, "max-source-ranges", "n", "loadBalancerSourceRanges of all Service ports", count, format)
}

// registerIPTables lists the fields of the iptables dataplane. Names and defaults are
// kube-proxy's, as those of registerTracking are.
func (l *Loader) registerIPTables() {
	c := &l.config.IPTables
	l.section = sectionIPTables
	add(l, &c.Backend, "iptables-backend", "name", "which iptables command the iptables dataplane uses: nft, legacy, or auto: the one that the node uses", oneOf(Auto, NFT, Legacy), format).of(Auto, NFT, Legacy)
	add(l, &c.MasqueradeBit, "iptables-masquerade-bit", "n", "the bit of the packet mark by which the iptables dataplane knows what to masquerade, 0 to 31", bit, format)
	addBool(l, &c.LocalhostNodePorts, "iptables-localhost-nodeports", "serve NodePorts at 127.0.0.1 with the iptables dataplane, which sets route_localnet")
}

// registerHealth lists how backends are watched, by the names of the annotations that a
// Service says it with, and how scripts are run.
func (l *Loader) registerHealth() {
	c := &l.config
	l.section = sectionHealth
	for _, f := range lb.HealthFields() {
		parse := func(s string) (lb.Health, error) {
			h := c.Health
			return h, f.Set(&h, s)
		}
		a := add(l, &c.Health, f.Name, f.Type, f.Usage+"; where a Service does not say it", parse, func(h lb.Health) string { return f.Text(&h) }).live()
		if f.Type == "bool" {
			l.flags.Lookup(f.Name).NoOptDefVal = "true"
		}
		if f.Name == checkFlag {
			for k := lb.ProbeNone; k <= lb.ProbeExec; k++ {
				a.values = append(a.values, k.String())
			}
		}
	}
	add(l, &c.Scripts.Dir, "health-script-dir", "dir", "where the scripts of exec probes are; empty: there are no exec probes", absolute, format)
	add(l, &c.Scripts.User, "health-script-user", "uid:gid", "the unprivileged user and group that scripts run as", user, format)
}

// registerTracking lists sysctls. They need a restart: the container that serves may not
// write them, the one that runs before it does.
func (l *Loader) registerTracking() {
	t := &l.config.Conntrack
	l.section = sectionTracking
	add(l, &t.MaxPerCore, "conntrack-max-per-core", "n", "connections that netfilter may track for each CPU; 0: as it is", anyCount, format)
	add(l, &t.Min, "conntrack-min", "n", "and at least so many, whatever conntrack-max-per-core says", anyCount, format)
	add(l, &t.TCPEstablished, "conntrack-tcp-timeout-established", "duration", "idle time after which netfilter forgets an established TCP connection; 0s: as it is", timeout, format)
	add(l, &t.TCPCloseWait, "conntrack-tcp-timeout-close-wait", "duration", "the same in CLOSE_WAIT", timeout, format)
	addBool(l, &t.TCPBeLiberal, "conntrack-tcp-be-liberal", "let netfilter track TCP packets outside the window, instead of dropping what it calls invalid")
	add(l, &t.UDPTimeout, "conntrack-udp-timeout", "duration", "the same of UDP without an answer; 0s: as it is", timeout, format)
	add(l, &t.UDPStreamTimeout, "conntrack-udp-timeout-stream", "duration", "the same of UDP with answers; 0s: as it is", timeout, format)
}

func (l *Loader) registerProcess() {
	c := &l.config
	l.section = sectionProcess
	add(l, &c.HealthzBindAddress, "healthz-bind-address", "ip:port", "where /healthz and /livez are served; empty: nowhere", bindAddress(10256), formatAddrPort)
	add(l, &c.MetricsBindAddress, "metrics-bind-address", "ip:port", "where /metrics is served; empty: nowhere", bindAddress(10249), formatAddrPort)
	addBool(l, &c.BindAddressHardFail, "bind-address-hard-fail", "exit when one of these addresses cannot be bound, instead of trying again")
	addBool(l, &c.Profiling, "profiling", "serve /debug/pprof, and PUT /debug/flags/v for the verbosity of the log, at metrics-bind-address").live()
	addBool(l, &c.Web, "web", "serve pages for people at metrics-bind-address, below /web/: Services, backends and how they fare; they change nothing")
	add(l, &c.MetricsDetail, "metrics-detail", "name", "what metrics of connections tell apart: node, service, or backend, which is as many as there are backends", oneOf(NodeDetail, ServiceDetail, BackendDetail), format).of(NodeDetail, ServiceDetail, BackendDetail).live()
	add(l, &c.MetricsMaxServices, "metrics-max-services", "n", "Service ports, per IP family, that have metrics of their own; 0: all", anyCount, format).live()
	add(l, &c.SyncPeriod, "sync-period", "duration", "unhealthy when an update is not applied within twice this time", period, format).live()
	add(l, &c.LogLevel, "log-level", "level", "debug, info, warn or error", logLevel, formatLevel).of(logLevels...).live()
	add(l, &c.LogFormat, "log-format", "name", "text or json", oneOf(Text, JSON), format).of(Text, JSON)
	add(l, &c.OOMScoreAdj, "oom-score-adj", "n", "how readily the kernel ends the agent when memory is short, from -1000 to 1000", oomScoreAdj, format).live()
}

// aliases are other names of flags, from kube-proxy.
var aliases = map[string]string{
	"enable-profiling":  "profiling", // in its file
	"hostname-override": "node-name",
	"proxy-mode":        "dataplane",
}
