// SPDX-License-Identifier: Apache-2.0

// Package config holds lbproxy's configuration: one typed value that is read from
// a file, the environment and flags, in rising precedence. Each field is
// registered once, as a flag; its name in the file (nodeName for --node-name)
// and in the environment (LBPROXY_NODE_NAME) follow from the flag's.
package config

import (
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// The dataplanes that a configuration may name.
const (
	Auto     = "auto"
	EBPF     = "ebpf"
	IPTables = "iptables"
)

// The backends of the iptables command that a configuration may name, besides Auto.
const (
	NFT    = "nft"
	Legacy = "legacy"
)

// What metrics of connections tell apart.
const (
	NodeDetail    = "node"
	ServiceDetail = "service"
	BackendDetail = "backend"
)

// The log formats.
const (
	Text = "text"
	JSON = "json"
)

// Config is everything an operator can choose. A zero or nil field means what its
// comment says; Default has the values of fields that nobody set.
type Config struct {
	Kubeconfig string // path; empty: in the pod's own cluster
	Manifests  string // directory with Services and EndpointSlices; empty: an API server has them
	NodeName   string // empty: the host's name

	Dataplane  string        // Auto, EBPF or IPTables
	Algorithm  string        // of Services that choose none
	SlowStart  time.Duration // of Services that choose none; 0: none
	HashSeed   uint64        // of hash and ip-hash; the same on every node
	CgroupRoot string        // directory in a cgroup v2 mount; empty: the root of the mount that is found
	BPFFS      string        // a bpffs mount
	StateDir   string        // files that need not survive a reboot

	Devices                []string       // names or globs; nil: every device but lo
	ClusterCIDR            []netip.Prefix // the pods of the cluster
	DetectLocalMode        lb.LocalMode   // how callers that are pods are told from others
	PodBridgeInterface     string         // the bridge of LocalBridgeInterface
	PodInterfaceNamePrefix string         // of LocalInterfaceNamePrefix
	NodePortAddresses      lb.NodePortAddresses
	MasqueradeAll          bool
	AllowExternalIPs       bool
	NodeWeights            bool // all Nodes are watched for their weights

	HealthzBindAddress  netip.AddrPort // zero: no server
	MetricsBindAddress  netip.AddrPort // zero: no server
	BindAddressHardFail bool
	Profiling           bool // the metrics server shows profiles of the agent, and takes its verbosity
	Web                 bool // and pages for people

	MetricsDetail      string // NodeDetail, ServiceDetail or BackendDetail
	MetricsMaxServices uint32 // Service ports with metrics of their own; 0: all

	OOMScoreAdj int // of the agent, -1000 to 1000

	LogLevel  slog.Level
	LogFormat string // Text or JSON

	MaxServices     uint32 // entries of a kernel table, as all of these; 0: the dataplane's default
	MaxFrontends    uint32
	MaxBackends     uint32
	MaxSlots        uint32
	MaxConnections  uint32
	MaxFlows        uint32
	MaxAffinities   uint32
	MaxSourceRanges uint32

	SyncPeriod  time.Duration // the agent is unhealthy when an update waits for twice as long
	AuditPeriod time.Duration // the kernel is compared with what it should have once in it; 0: never

	Health  lb.Health // how backends are watched where a Service does not say it; complete
	Scripts ScriptsConfig

	IPTables  IPTablesConfig
	Conntrack ConntrackConfig
}

// ScriptsConfig is how exec probes run their scripts.
type ScriptsConfig struct {
	Dir  string // where they are; empty: exec probes are refused
	User User   // that they run as
}

// User is an unprivileged user and group, by their numbers.
type User struct{ UID, GID uint32 }

// String returns uid:gid.
func (u User) String() string { return fmt.Sprintf("%d:%d", u.UID, u.GID) }

// IPTablesConfig is what concerns the iptables dataplane only.
type IPTablesConfig struct {
	Backend            string // Auto, NFT or Legacy
	MasqueradeBit      uint8  // of the packet mark, 0 to 31
	LocalhostNodePorts bool   // NodePorts are served at 127.0.0.1
}

// ConntrackConfig is what becomes of the node's sysctls of connection tracking; what is
// zero or false stays as it is.
type ConntrackConfig struct {
	MaxPerCore       uint32 // entries of the table for each CPU
	Min              uint32 // and at least
	TCPEstablished   time.Duration
	TCPCloseWait     time.Duration
	TCPBeLiberal     bool
	UDPTimeout       time.Duration
	UDPStreamTimeout time.Duration
}

// LocalDetector returns how callers that are pods are told from others.
func (c Config) LocalDetector() lb.LocalDetector {
	d := lb.LocalDetector{Mode: c.DetectLocalMode}
	switch c.DetectLocalMode {
	case lb.LocalClusterCIDR:
		d.Ranges = c.ClusterCIDR
	case lb.LocalBridgeInterface:
		d.Interface = c.PodBridgeInterface
	case lb.LocalInterfaceNamePrefix:
		d.Interface = c.PodInterfaceNamePrefix
	case lb.LocalNone, lb.LocalNodeCIDR:
	}
	return d
}

// Default returns the configuration of an agent that was told nothing.
func Default() Config {
	return Config{
		Dataplane:          Auto,
		Algorithm:          "random",
		BPFFS:              "/sys/fs/bpf",
		StateDir:           "/run/lbproxy",
		DetectLocalMode:    lb.LocalClusterCIDR,
		AllowExternalIPs:   true,
		NodeWeights:        true,
		HealthzBindAddress: netip.MustParseAddrPort("0.0.0.0:10256"),
		MetricsBindAddress: netip.MustParseAddrPort("127.0.0.1:10249"),
		MetricsDetail:      ServiceDetail,
		MetricsMaxServices: 1000,
		OOMScoreAdj:        -999,
		LogFormat:          Text,
		SyncPeriod:         30 * time.Second,
		AuditPeriod:        time.Minute,
		Health:             lb.DefaultHealth(),
		Scripts:            ScriptsConfig{User: User{nobody, nobody}},
		IPTables:           IPTablesConfig{Backend: Auto, MasqueradeBit: 14, LocalhostNodePorts: true},
		Conntrack: ConntrackConfig{
			MaxPerCore:     32 << 10,
			Min:            128 << 10,
			TCPEstablished: 24 * time.Hour,
			TCPCloseWait:   time.Hour,
		},
	}
}

// register lists every field once. The check of an algorithm's name is the
// caller's, because this package knows none.
func (l *Loader) register(checkAlgorithm func(string) error) {
	c := &l.config
	add(l, &l.path, "config", "path", "read the configuration from this YAML file", text, format)
	add(l, &c.Kubeconfig, "kubeconfig", "path", "how to reach the API server; default: in-cluster", text, format)
	add(l, &c.Manifests, "manifests", "dir", "take Services and EndpointSlices from the YAML files of this directory, not from an API server", text, format)
	add(l, &c.NodeName, "node-name", "name", "this node's name in the cluster; default: the host name", nodeName, format)

	add(l, &c.Dataplane, "dataplane", "name", "ebpf, iptables, or auto: ebpf if this node can, else iptables", l.dataplane, format)
	add(l, &c.Algorithm, "algorithm", "name", "how Services that choose no algorithm are balanced", checked(checkAlgorithm), format)
	add(l, &c.SlowStart, "slow-start", "duration", "how long a new backend takes to get its full share, where a Service does not say it; 0s: no time", lb.ParseSlowStart, format)
	add(l, &c.HashSeed, "hash-seed", "n", "what hash and ip-hash begin with, decimal or 0x hexadecimal; nodes of one seed choose alike", seed, format)
	add(l, &c.CgroupRoot, "cgroup-root", "dir", "attach socket programs to this cgroup v2 directory; default: the root of the mount", absolute, format)
	add(l, &c.BPFFS, "bpffs", "dir", "mount point of the bpffs that keeps maps and links", absolute, format)
	add(l, &c.StateDir, "state-dir", "dir", "directory for files that need not survive a reboot: the lock that keeps two agents apart, and the socket at which the agent is asked", absolute, format)

	add(l, &c.Devices, "devices", "list", "network devices to attach to, names or globs; auto: all but lo", devices, formatDevices)
	add(l, &c.ClusterCIDR, "cluster-cidr", "list", "address ranges of the cluster's pods: callers from elsewhere are masqueraded", prefixes, formatPrefixes)
	add(l, &c.DetectLocalMode, "detect-local-mode", "name", "how pods are told from other callers: ClusterCIDR (their address is in cluster-cidr), NodeCIDR (it is in the Node's podCIDRs, which are followed; before they are known nobody is a pod), BridgeInterface or InterfaceNamePrefix (the device that their packets come from)", localMode, format)
	add(l, &c.PodBridgeInterface, "pod-bridge-interface", "name", "the bridge that pods are behind, for detect-local-mode BridgeInterface", deviceName, format)
	add(l, &c.PodInterfaceNamePrefix, "pod-interface-name-prefix", "prefix", "what the names of pods' devices begin with, for detect-local-mode InterfaceNamePrefix", deviceName, format)
	add(l, &c.NodePortAddresses, "nodeport-addresses", "list", "serve NodePorts and health check ports only at the node's addresses within these ranges; primary: those of the Node object, localhost: loopback, all: every one; default: all", nodePortAddresses, formatNodePortAddresses)
	addBool(l, &c.MasqueradeAll, "masquerade-all", "masquerade every caller of a cluster IP on the packet path")
	addBool(l, &c.AllowExternalIPs, "allow-external-ips", "serve spec.externalIPs of Services")
	addBool(l, &c.NodeWeights, "node-weights", "follow the weights of Nodes, for which all Nodes are watched; false: only this one, and they do not count")

	add(l, &c.HealthzBindAddress, "healthz-bind-address", "ip:port", "where /healthz and /livez are served; empty: nowhere", bindAddress(10256), formatAddrPort)
	add(l, &c.MetricsBindAddress, "metrics-bind-address", "ip:port", "where /metrics is served; empty: nowhere", bindAddress(10249), formatAddrPort)
	addBool(l, &c.BindAddressHardFail, "bind-address-hard-fail", "exit when one of these addresses cannot be bound, instead of trying again")

	addBool(l, &c.Profiling, "profiling", "serve /debug/pprof, and PUT /debug/flags/v for the verbosity of the log, at metrics-bind-address")
	addBool(l, &c.Web, "web", "serve pages for people at metrics-bind-address, below /web/: Services, backends and how they fare; they change nothing")
	add(l, &c.MetricsDetail, "metrics-detail", "name", "what metrics of connections tell apart: node, service, or backend, which is as many as there are backends", oneOf(NodeDetail, ServiceDetail, BackendDetail), format)
	add(l, &c.MetricsMaxServices, "metrics-max-services", "n", "Service ports, per IP family, that have metrics of their own; 0: all", anyCount, format)
	add(l, &c.OOMScoreAdj, "oom-score-adj", "n", "how readily the kernel ends the agent when memory is short, from -1000 to 1000", oomScoreAdj, format)

	add(l, &c.LogLevel, "log-level", "level", "debug, info, warn or error", logLevel, formatLevel)
	add(l, &c.LogFormat, "log-format", "name", "text or json", oneOf(Text, JSON), format)

	add(l, &c.MaxServices, "max-services", "n", "Service ports that the kernel's tables hold; 0: the dataplane's default, as below", count, format)
	add(l, &c.MaxFrontends, "max-frontends", "n", "addresses of Services that they hold", count, format)
	add(l, &c.MaxBackends, "max-backends", "n", "backends that they hold, once for each Service port", count, format)
	add(l, &c.MaxSlots, "max-slots", "n", "entries of all Services' tables: 8 and more for each, see docs/ARCHITECTURE.md", count, format)
	add(l, &c.MaxConnections, "max-connections", "n", "entries for connections of the packet path: 2 for each, 4 if masqueraded", count, format)
	add(l, &c.MaxFlows, "max-flows", "n", "entries for flows of unconnected UDP sockets: 2 for each", count, format)
	add(l, &c.MaxAffinities, "max-affinities", "n", "clients that are remembered for sessionAffinity, once for each Service port", count, format)
	add(l, &c.MaxSourceRanges, "max-source-ranges", "n", "loadBalancerSourceRanges of all Service ports", count, format)

	add(l, &c.SyncPeriod, "sync-period", "duration", "unhealthy when an update is not applied within twice this time", period, format)
	add(l, &c.AuditPeriod, "audit-period", "duration", "compare the kernel with what it should have once in this time, and repair it; 0s: never", periodOrNever, format)

	l.registerHealth()
	l.registerIPTables()
}

// registerHealth lists how backends are watched, by the names of the annotations that a
// Service says it with, and how scripts are run.
func (l *Loader) registerHealth() {
	c := &l.config
	for _, f := range lb.HealthFields() {
		parse := func(s string) (lb.Health, error) {
			h := c.Health
			return h, f.Set(&h, s)
		}
		add(l, &c.Health, f.Name, f.Type, f.Usage+"; where a Service does not say it", parse, func(h lb.Health) string { return f.Text(&h) })
		if f.Type == "bool" {
			l.flags.Lookup(f.Name).NoOptDefVal = "true"
		}
	}
	add(l, &c.Scripts.Dir, "health-script-dir", "dir", "where the scripts of exec probes are; empty: there are no exec probes", absolute, format)
	add(l, &c.Scripts.User, "health-script-user", "uid:gid", "the unprivileged user and group that scripts run as", user, format)
}

// registerIPTables lists the fields of the iptables dataplane, and of connection
// tracking. Their names and defaults are kube-proxy's.
func (l *Loader) registerIPTables() {
	c, t := &l.config.IPTables, &l.config.Conntrack
	add(l, &c.Backend, "iptables-backend", "name", "which iptables command the iptables dataplane uses: nft, legacy, or auto: the one that the node uses", oneOf(Auto, NFT, Legacy), format)
	add(l, &c.MasqueradeBit, "iptables-masquerade-bit", "n", "the bit of the packet mark by which the iptables dataplane knows what to masquerade, 0 to 31", bit, format)
	addBool(l, &c.LocalhostNodePorts, "iptables-localhost-nodeports", "serve NodePorts at 127.0.0.1 with the iptables dataplane, which sets route_localnet")

	add(l, &t.MaxPerCore, "conntrack-max-per-core", "n", "connections that netfilter may track for each CPU; 0: as it is", anyCount, format)
	add(l, &t.Min, "conntrack-min", "n", "and at least so many, whatever conntrack-max-per-core says", anyCount, format)
	add(l, &t.TCPEstablished, "conntrack-tcp-timeout-established", "duration", "idle time after which netfilter forgets an established TCP connection; 0s: as it is", timeout, format)
	add(l, &t.TCPCloseWait, "conntrack-tcp-timeout-close-wait", "duration", "the same in CLOSE_WAIT", timeout, format)
	addBool(l, &t.TCPBeLiberal, "conntrack-tcp-be-liberal", "let netfilter track TCP packets outside the window, instead of dropping what it calls invalid")
	add(l, &t.UDPTimeout, "conntrack-udp-timeout", "duration", "the same of UDP without an answer; 0s: as it is", timeout, format)
	add(l, &t.UDPStreamTimeout, "conntrack-udp-timeout-stream", "duration", "the same of UDP with answers; 0s: as it is", timeout, format)
}

// aliases are other names of flags, from kube-proxy.
var aliases = map[string]string{
	"enable-profiling":  "profiling", // in its file
	"hostname-override": "node-name",
	"proxy-mode":        "dataplane",
}
