// SPDX-License-Identifier: Apache-2.0

// Package config holds lbproxy's configuration: one typed value that is read from
// a file, the environment and flags, in rising precedence. Each field is
// registered once, as a flag; its name in the file (nodeName for --node-name)
// and in the environment (LBPROXY_NODE_NAME) follow from the flag's.
package config

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// The dataplanes that a configuration may name.
const (
	Auto = "auto"
	EBPF = "ebpf"
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

	Dataplane  string        // Auto or EBPF
	Algorithm  string        // of Services that choose none
	SlowStart  time.Duration // of Services that choose none; 0: none
	HashSeed   uint64        // of hash and ip-hash; the same on every node
	CgroupRoot string        // directory in a cgroup v2 mount; empty: the root of the mount that is found
	BPFFS      string        // a bpffs mount
	StateDir   string        // files that need not survive a reboot

	Devices           []string       // names or globs; nil: every device but lo
	ClusterCIDR       []netip.Prefix // the pods of the cluster
	NodePortAddresses []netip.Prefix // nil: all addresses of the node
	MasqueradeAll     bool
	AllowExternalIPs  bool
	NodeWeights       bool // all Nodes are watched for their weights

	HealthzBindAddress  netip.AddrPort // zero: no server
	MetricsBindAddress  netip.AddrPort // zero: no server
	BindAddressHardFail bool

	LogLevel  slog.Level
	LogFormat string // Text or JSON

	MaxServices    uint32 // entries of a kernel table, as all of these; 0: the dataplane's default
	MaxFrontends   uint32
	MaxBackends    uint32
	MaxSlots       uint32
	MaxConnections uint32
	MaxFlows       uint32

	SyncPeriod time.Duration // the agent is unhealthy when an update waits for twice as long
}

// Default returns the configuration of an agent that was told nothing.
func Default() Config {
	return Config{
		Dataplane:          Auto,
		Algorithm:          "random",
		BPFFS:              "/sys/fs/bpf",
		StateDir:           "/run/lbproxy",
		AllowExternalIPs:   true,
		NodeWeights:        true,
		HealthzBindAddress: netip.MustParseAddrPort("0.0.0.0:10256"),
		MetricsBindAddress: netip.MustParseAddrPort("127.0.0.1:10249"),
		LogFormat:          Text,
		SyncPeriod:         30 * time.Second,
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

	add(l, &c.Dataplane, "dataplane", "name", "auto or ebpf", dataplane, format)
	add(l, &c.Algorithm, "algorithm", "name", "how Services that choose no algorithm are balanced", checked(checkAlgorithm), format)
	add(l, &c.SlowStart, "slow-start", "duration", "how long a new backend takes to get its full share, where a Service does not say it; 0s: no time", lb.ParseSlowStart, format)
	add(l, &c.HashSeed, "hash-seed", "n", "what hash and ip-hash begin with, decimal or 0x hexadecimal; nodes of one seed choose alike", seed, format)
	add(l, &c.CgroupRoot, "cgroup-root", "dir", "attach socket programs to this cgroup v2 directory; default: the root of the mount", absolute, format)
	add(l, &c.BPFFS, "bpffs", "dir", "mount point of the bpffs that keeps maps and links", absolute, format)
	add(l, &c.StateDir, "state-dir", "dir", "directory for files that need not survive a reboot (none so far)", absolute, format)

	add(l, &c.Devices, "devices", "list", "network devices to attach to, names or globs; auto: all but lo", devices, formatDevices)
	add(l, &c.ClusterCIDR, "cluster-cidr", "list", "address ranges of the cluster's pods: callers from elsewhere are masqueraded", prefixes, formatPrefixes)
	add(l, &c.NodePortAddresses, "nodeport-addresses", "list", "serve NodePorts only at the node's addresses within these ranges; default: at all", prefixes, formatPrefixes)
	addBool(l, &c.MasqueradeAll, "masquerade-all", "masquerade every caller of a cluster IP on the packet path")
	addBool(l, &c.AllowExternalIPs, "allow-external-ips", "serve spec.externalIPs of Services")
	addBool(l, &c.NodeWeights, "node-weights", "follow the weights of Nodes, for which all Nodes are watched; false: only this one, and they do not count")

	add(l, &c.HealthzBindAddress, "healthz-bind-address", "ip:port", "where /healthz and /livez are served; empty: nowhere", bindAddress(10256), formatAddrPort)
	add(l, &c.MetricsBindAddress, "metrics-bind-address", "ip:port", "where /metrics is served; empty: nowhere", bindAddress(10249), formatAddrPort)
	addBool(l, &c.BindAddressHardFail, "bind-address-hard-fail", "exit when one of these addresses cannot be bound, instead of trying again")

	add(l, &c.LogLevel, "log-level", "level", "debug, info, warn or error", logLevel, formatLevel)
	add(l, &c.LogFormat, "log-format", "name", "text or json", oneOf(Text, JSON), format)

	add(l, &c.MaxServices, "max-services", "n", "Service ports that the kernel's tables hold; 0: the dataplane's default, as below", count, format)
	add(l, &c.MaxFrontends, "max-frontends", "n", "addresses of Services that they hold", count, format)
	add(l, &c.MaxBackends, "max-backends", "n", "backends that they hold, once for each Service port", count, format)
	add(l, &c.MaxSlots, "max-slots", "n", "entries of all Services' tables: 8 and more for each, see docs/ARCHITECTURE.md", count, format)
	add(l, &c.MaxConnections, "max-connections", "n", "entries for connections of the packet path: 2 for each, 4 if masqueraded", count, format)
	add(l, &c.MaxFlows, "max-flows", "n", "entries for flows of unconnected UDP sockets: 2 for each", count, format)

	add(l, &c.SyncPeriod, "sync-period", "duration", "unhealthy when an update is not applied within twice this time", period, format)
}

// aliases are other names of flags, from kube-proxy.
var aliases = map[string]string{
	"hostname-override": "node-name",
	"proxy-mode":        "dataplane",
}
