// SPDX-License-Identifier: Apache-2.0

package config

import (
	"log/slog"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// names reads a list of names, one in each line.
func names(t *testing.T, path string) []string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for line := range strings.Lines(string(content)) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "#") {
			all = append(all, line)
		}
	}
	return all
}

// loadFlags reads a command line of kube-proxy's.
func loadFlags(t *testing.T, environ []string, args ...string) (*Loader, Config, error) {
	t.Helper()
	l := New()
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	l.Flags(fs)
	l.KubeProxyFlags(fs)
	fs.Bool("init-only", false, "")
	fs.String("write-config-to", "", "")
	if err := fs.Parse(args); err != nil {
		return l, Config{}, err
	}
	c, err := l.Load(environ)
	return l, c, err
}

// flagCase is what becomes of one flag of kube-proxy: set changes the default
// configuration to what is wanted; nil: it changes nothing.
type flagCase struct {
	arg    string
	set    func(*Config)
	idle   bool
	refuse string // a part of the error
}

// flagCases are about every flag that kube-proxy has.
var flagCases = []flagCase{
	{arg: "bind-address=::1", idle: true, set: func(c *Config) {
		c.HealthzBindAddress, c.MetricsBindAddress = netip.MustParseAddrPort("[::]:10256"), netip.MustParseAddrPort("[::1]:10249")
	}},
	{arg: "bind-address-hard-fail", set: func(c *Config) { c.BindAddressHardFail = true }},
	{arg: "cleanup", refuse: "cleanup (from --cleanup): is a command of its own: lbproxy cleanup"},
	{arg: "cluster-cidr=10.0.0.0/8", set: func(c *Config) { c.ClusterCIDR = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }},
	{arg: "config=/nowhere", refuse: "config (from --config): open /nowhere"},
	{arg: "config-sync-period=1m", idle: true},
	{arg: "conntrack-max-per-core=7", set: func(c *Config) { c.Conntrack.MaxPerCore = 7 }},
	{arg: "conntrack-min=7", set: func(c *Config) { c.Conntrack.Min = 7 }},
	{arg: "conntrack-tcp-be-liberal", set: func(c *Config) { c.Conntrack.TCPBeLiberal = true }},
	{arg: "conntrack-tcp-timeout-close-wait=7s", set: func(c *Config) { c.Conntrack.TCPCloseWait = 7 * time.Second }},
	{arg: "conntrack-tcp-timeout-established=7s", set: func(c *Config) { c.Conntrack.TCPEstablished = 7 * time.Second }},
	{arg: "conntrack-udp-timeout=7s", set: func(c *Config) { c.Conntrack.UDPTimeout = 7 * time.Second }},
	{arg: "conntrack-udp-timeout-stream=7s", set: func(c *Config) { c.Conntrack.UDPStreamTimeout = 7 * time.Second }},
	{arg: "detect-local-mode=NodeCIDR", set: func(c *Config) { c.DetectLocalMode = lb.LocalNodeCIDR }},
	{arg: "feature-gates=AllowServiceExternalIPs=false,NobodyKnowsIt=true", set: func(c *Config) { c.AllowExternalIPs = false }},
	{arg: "healthz-bind-address=192.0.2.1:7", set: func(c *Config) { c.HealthzBindAddress = netip.MustParseAddrPort("192.0.2.1:7") }},
	{arg: "healthz-port=7", set: func(c *Config) { c.HealthzBindAddress = netip.MustParseAddrPort("0.0.0.0:7") }},
	{arg: "hostname-override=Worker", set: func(c *Config) { c.NodeName = "worker" }},
	{arg: "init-only"},
	{arg: "iptables-localhost-nodeports=false", set: func(c *Config) { c.IPTables.LocalhostNodePorts = false }},
	{arg: "iptables-masquerade-bit=7", set: func(c *Config) { c.IPTables.MasqueradeBit = 7 }},
	{arg: "iptables-min-sync-period=7s", idle: true},
	{arg: "iptables-sync-period=7s", set: func(c *Config) { c.SyncPeriod = 7 * time.Second }},
	{arg: "ipvs-exclude-cidrs=10.0.0.0/8", idle: true},
	{arg: "ipvs-min-sync-period=7s", idle: true},
	{arg: "ipvs-scheduler=rr", idle: true},
	{arg: "ipvs-strict-arp", idle: true},
	{arg: "ipvs-sync-period=7s", idle: true},
	{arg: "ipvs-tcp-timeout=7s", idle: true},
	{arg: "ipvs-tcpfin-timeout=7s", idle: true},
	{arg: "ipvs-udp-timeout=7s", idle: true},
	{arg: "kube-api-burst=7", idle: true},
	{arg: "kube-api-content-type=application/json", idle: true},
	{arg: "kube-api-qps=7", idle: true},
	{arg: "kubeconfig=/k", set: func(c *Config) { c.Kubeconfig = "/k" }},
	{arg: "log-flush-frequency=7s", idle: true},
	{arg: "log-json-info-buffer-size=1K", idle: true},
	{arg: "log-json-split-stream", idle: true},
	{arg: "log-text-info-buffer-size=1K", idle: true},
	{arg: "log-text-split-stream", idle: true},
	{arg: "logging-format=json", set: func(c *Config) { c.LogFormat = JSON }},
	{arg: "masquerade-all", set: func(c *Config) { c.MasqueradeAll = true }},
	{arg: "master=192.0.2.1:6443", set: func(c *Config) { c.Master = "https://192.0.2.1:6443" }},
	{arg: "metrics-bind-address=0.0.0.0", set: func(c *Config) { c.MetricsBindAddress = netip.MustParseAddrPort("0.0.0.0:10249") }},
	{arg: "metrics-port=0", set: func(c *Config) { c.MetricsBindAddress = netip.AddrPort{} }},
	{arg: "nodeport-addresses=primary", set: func(c *Config) { c.NodePortAddresses.Primary = true }},
	{arg: "oom-score-adj=-7", set: func(c *Config) { c.OOMScoreAdj = -7 }},
	{arg: "pod-bridge-interface=cbr0", refuse: "pod-bridge-interface (from --pod-bridge-interface): needs detect-local-mode BridgeInterface"},
	{arg: "pod-interface-name-prefix=veth", refuse: "pod-interface-name-prefix (from --pod-interface-name-prefix): needs detect-local-mode InterfaceNamePrefix"},
	{arg: "profiling", set: func(c *Config) { c.Profiling = true }},
	{arg: "proxy-mode=iptables", set: func(c *Config) { c.Dataplane = IPTables }},
	{arg: "show-hidden-metrics-for-version=1.36", idle: true},
	{arg: "v=4", set: func(c *Config) { c.LogLevel = slog.LevelDebug }},
	{arg: "version", refuse: "lbproxy version"},
	{arg: "vmodule=a=1", idle: true},
	{arg: "write-config-to=/tmp/x"},
}

// TestEveryFlagOfKubeProxy: each one is what its row says, and no row is missing.
func TestEveryFlagOfKubeProxy(t *testing.T) {
	var tested []string
	for _, tc := range flagCases {
		name, _, _ := strings.Cut(tc.arg, "=")
		tested = append(tested, name)
		l, got, err := loadFlags(t, nil, "--"+tc.arg)
		if tc.refuse != "" {
			if err == nil || !strings.Contains(err.Error(), tc.refuse) {
				t.Errorf("--%s: error %v, want %q in it", tc.arg, err, tc.refuse)
			}
			continue
		}
		want := Default()
		if tc.set != nil {
			tc.set(&want)
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("--%s: %v\ngot  %+v\nwant %+v", tc.arg, err, got, want)
		}
		idle := l.IdleFlags()
		if tc.idle != (len(idle) == 1 && idle[0][0] == "--"+name && idle[0][1] != "") {
			t.Errorf("--%s: without effect are %q", tc.arg, idle)
		}
	}
	theirs := names(t, "testdata/kube-proxy-flags.txt")
	if !slices.Equal(tested, theirs) {
		t.Errorf("tested are %q\nkube-proxy has %q", tested, theirs)
	}
	var documented []string
	for _, f := range kubeProxyFlags {
		if f.why != whyOlder {
			documented = append(documented, f.name)
		}
	}
	if slices.Sort(documented); !slices.Equal(documented, theirs) {
		t.Errorf("documented are %q\nkube-proxy has %q", documented, theirs)
	}
}

func TestFlagsOfKubeProxyTogether(t *testing.T) {
	for _, tc := range []struct {
		name, args string
		env        []string
		check      func(Config) bool
	}{
		{"over the environment", "--v=5", []string{"LBPROXY_LOG_LEVEL=warn"}, func(c Config) bool { return c.LogLevel == slog.LevelDebug }},
		{"ours over theirs", "--log-level=warn -v=5", nil, func(c Config) bool { return c.LogLevel == slog.LevelWarn }},
		{"short", "-v 4", nil, func(c Config) bool { return c.LogLevel == slog.LevelDebug }},
		{"not verbose", "-v=2", []string{"LBPROXY_LOG_LEVEL=warn"}, func(c Config) bool { return c.LogLevel == slog.LevelWarn }},
		{"underscores", "--cluster_cidr=10.0.0.0/8 --iptables_sync_period=9s", nil,
			func(c Config) bool { return len(c.ClusterCIDR) == 1 && c.SyncPeriod == 9*time.Second }},
		{"address over the family's", "--bind-address=:: --metrics-bind-address=", nil,
			func(c Config) bool { return c.HealthzBindAddress.Addr().Is6() && !c.MetricsBindAddress.IsValid() }},
		{"environment over the family's", "--bind-address=::", []string{"LBPROXY_HEALTHZ_BIND_ADDRESS=192.0.2.1"},
			func(c Config) bool { return c.HealthzBindAddress.Addr().Is4() }},
		{"switched off", "--cleanup=false --version=false --log-text-split-stream=false", nil, func(Config) bool { return true }},
		{"of an older one", "--logtostderr --stderrthreshold=INFO --cleanup-ipvs", nil, func(Config) bool { return true }},
	} {
		_, c, err := loadFlags(t, tc.env, strings.Fields(tc.args)...)
		if err != nil || !tc.check(c) {
			t.Errorf("%s: %v, got %+v", tc.name, err, c)
		}
	}
	for args, want := range map[string]string{
		"--feature-gates=A":   `feature-gates (from --feature-gates): "A": want NAME=true`,
		"-v=high":             `v (from --v): "high": want a number`,
		"--healthz-port=x":    `"x": want a port`,
		"--logging-format=go": `log-format (from --logging-format): "go": want text or json`,
		"--nobody-knows=1":    "unknown flag: --nobody-knows",
	} {
		if _, _, err := loadFlags(t, nil, args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", args, err, want)
		}
	}
}

// TestEveryFieldOfKubeProxyHasARow: so that what becomes of it is documented, and it is
// not taken for unknown.
func TestEveryFieldOfKubeProxyHasARow(t *testing.T) {
	theirs := names(t, "testdata/kube-proxy-fields.txt")
	for _, field := range theirs {
		if find(kubeProxyFields, field) == nil {
			t.Errorf("%s has no row", field)
		}
	}
	flags := New().flags
	for _, row := range kubeProxyFields {
		has := func(field string) bool { return field == row.name || strings.HasPrefix(field, row.name+".") }
		if !slices.ContainsFunc(theirs, has) {
			t.Errorf("%s is no field of kube-proxy", row.name)
		}
		if row.to == "" && row.why == "" || row.to != "" && flags.Lookup(row.to) == nil {
			t.Errorf("%s: leads to %q for %q", row.name, row.to, row.why)
		}
	}
}
