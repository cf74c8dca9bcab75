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
	Master     string // URL of the API server; empty: what Kubeconfig or the pod says
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
