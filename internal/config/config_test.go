// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// load reads a configuration from all sources as a verb does.
func load(t *testing.T, file string, environ, args []string) (*Loader, Config, error) {
	t.Helper()
	l := New("random", "round-robin")
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	l.Flags(fs)
	if file != "" {
		path := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config="+path)
	}
	if err := fs.Parse(args); err != nil {
		return l, Config{}, err
	}
	c, err := l.Load(environ)
	return l, c, err
}

func TestPrecedence(t *testing.T) {
	for _, tc := range []struct {
		name, file string
		env, args  []string
		want       string
		source     string
	}{
		{name: "default", want: "random"},
		{name: "file over default", file: "algorithm: round-robin", want: "round-robin", source: "algorithm"},
		{name: "environment over file", file: "algorithm: random", env: []string{"LBPROXY_ALGORITHM=round-robin"},
			want: "round-robin", source: "LBPROXY_ALGORITHM"},
		{name: "flag over environment", env: []string{"LBPROXY_ALGORITHM=random"}, args: []string{"--algorithm=round-robin"},
			want: "round-robin", source: "--algorithm"},
		{name: "flag over all", file: "algorithm: random", env: []string{"LBPROXY_ALGORITHM=random"},
			args: []string{"--algorithm=round-robin"}, want: "round-robin", source: "--algorithm"},
		{name: "what is overridden is not looked at", file: "algorithm: nonsense", args: []string{"--algorithm=round-robin"},
			want: "round-robin", source: "--algorithm"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, c, err := load(t, tc.file, tc.env, tc.args)
			if err != nil {
				t.Fatal(err)
			}
			if c.Algorithm != tc.want {
				t.Errorf("algorithm = %q, want %q", c.Algorithm, tc.want)
			}
			if got := l.Sources()["algorithm"]; !strings.HasSuffix(got, tc.source) || (tc.source == "") != (got == "") {
				t.Errorf("source = %q, want %q", got, tc.source)
			}
		})
	}
}

// everything sets each field to something else than its default; fields of the
// file are by their names there.
const everything = `
kubeconfig: /etc/kubeconfig
master: https://192.0.2.1:6443
nodeName: Worker-1
dataplane: ebpf
algorithm: round-robin
slowStart: 30s
hashSeed: 0xfedcba9876543210
cgroupRoot: /cg
bpffs: /bpf
stateDir: /state
devices: [eth0, "cali*"]
clusterCIDR: 10.244.0.0/16,fd00::/48
detectLocalMode: BridgeInterface
podBridgeInterface: cbr0
nodePortAddresses: [192.0.2.0/24, primary, localhost]
masqueradeAll: true
allowExternalIPs: false
nodeWeights: false
healthzBindAddress: ":20256"
metricsBindAddress: "::1"
bindAddressHardFail: yes
profiling: true
web: true
metricsDetail: backend
metricsMaxServices: 50
oomScoreAdj: -500
logLevel: debug
logFormat: json
maxServices: 1
maxFrontends: 2
maxBackends: 3
maxSlots: 4
maxConnections: 5
maxFlows: 1000000
maxAffinities: 6
maxSourceRanges: 7
syncPeriod: 1m
auditPeriod: 5m
healthCheck: exec
healthCheckPort: 8080
healthCheckPath: /ready
healthCheckHost: shop.example
healthCheckHeaders: |
  X-A: 1
  X-B: 2
healthCheckExpect: 204
healthCheckBody: well
healthCheckVerify: true
healthCheckService: shop.Cart
healthCheckScript: ask.sh
healthCheckInterval: 2s
healthCheckFastInterval: 200ms
healthCheckTimeout: 300ms
healthCheckRise: 4
healthCheckFall: 5
healthCheckGrace: 6s
healthPassive: false
healthMaxEjected: 50
healthPanic: 0
healthDrain: true
healthScriptDir: /etc/scripts
healthScriptUser: "100:101"
iptablesBackend: legacy
iptablesMasqueradeBit: 7
iptablesLocalhostNodePorts: false
conntrackMaxPerCore: 8
conntrackMin: 9
conntrackTCPTimeoutEstablished: 2h
conntrackTCPTimeoutCloseWait: 30m
conntrackTCPBeLiberal: true
conntrackUDPTimeout: 31s
conntrackUDPTimeoutStream: 2m
`

func TestEveryFieldFromTheFile(t *testing.T) {
	l, got, err := load(t, everything, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Kubeconfig: "/etc/kubeconfig", Master: "https://192.0.2.1:6443", NodeName: "worker-1", Dataplane: "ebpf", Algorithm: "round-robin",
		SlowStart: 30 * time.Second, HashSeed: 0xfedcba9876543210,
		CgroupRoot: "/cg", BPFFS: "/bpf", StateDir: "/state",
		Devices:         []string{"eth0", "cali*"},
		ClusterCIDR:     []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00::/48")},
		DetectLocalMode: lb.LocalBridgeInterface, PodBridgeInterface: "cbr0",
		NodePortAddresses: lb.NodePortAddresses{Primary: true, Ranges: []netip.Prefix{
			netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"),
		}},
		MasqueradeAll: true, BindAddressHardFail: true, Profiling: true, OOMScoreAdj: -500,
		Web: true, MetricsDetail: BackendDetail, MetricsMaxServices: 50,
		HealthzBindAddress: netip.MustParseAddrPort("0.0.0.0:20256"),
		MetricsBindAddress: netip.MustParseAddrPort("[::1]:10249"),
		LogLevel:           slog.LevelDebug, LogFormat: "json",
		MaxServices: 1, MaxFrontends: 2, MaxBackends: 3, MaxSlots: 4, MaxConnections: 5, MaxFlows: 1000000, MaxAffinities: 6, MaxSourceRanges: 7,
		SyncPeriod: time.Minute, AuditPeriod: 5 * time.Minute,
		Health: lb.Health{
			Probe: lb.Probe{
				Kind: lb.ProbeExec, Port: 8080, Timeout: 300 * time.Millisecond, Path: "/ready", Host: "shop.example",
				Headers: "X-A: 1\nX-B: 2\n", Expect: "204", Body: "well", GRPCService: "shop.Cart", Script: "ask.sh",
			},
			Verify: lb.SwitchOn, Interval: 2 * time.Second, FastInterval: 200 * time.Millisecond, Grace: 6 * time.Second, Rise: 4, Fall: 5,
			Passive: lb.SwitchOff, MaxEjected: 50, Panic: lb.NoPercent, Drain: lb.SwitchOn,
		},
		Scripts:  ScriptsConfig{Dir: "/etc/scripts", User: User{100, 101}},
		IPTables: IPTablesConfig{Backend: "legacy", MasqueradeBit: 7},
		Conntrack: ConntrackConfig{
			MaxPerCore: 8, Min: 9, TCPEstablished: 2 * time.Hour, TCPCloseWait: 30 * time.Minute, TCPBeLiberal: true,
			UDPTimeout: 31 * time.Second, UDPStreamTimeout: 2 * time.Minute,
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if n, fields := len(l.Sources()), len(l.Fields()); n != fields-2 { // all but what contradicts others: manifests and podInterfaceNamePrefix
		t.Errorf("%d fields have a source, want %d: a field is missing in this test", n, fields-2)
	}
}

// TestFieldsAreReadable feeds back what Fields shows.
func TestFieldsAreReadable(t *testing.T) {
	l, want, err := load(t, everything, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var environ []string
	l.flags.VisitAll(func(f *pflag.Flag) {
		if f.Name != configFlag {
			environ = append(environ, EnvPrefix+strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))+"="+f.Value.String())
		}
	})
	_, got, err := load(t, "", environ, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("from %q\ngot  %+v\nwant %+v", environ, got, want)
	}
	fields := l.Fields()
	for name, want := range map[string]any{
		"devices": []string{"eth0", "cali*"}, "maxFlows": uint32(1000000), "masqueradeAll": true,
		"syncPeriod": "1m0s", "slowStart": "30s", "hashSeed": "18364758544493064720", "logLevel": "debug", "manifests": "",
		"healthCheck": "exec", "healthCheckVerify": true, "healthPassive": false, "healthPanic": json.Number("0"), "healthCheckRise": json.Number("4"), "healthScriptUser": "100:101",
	} {
		if !reflect.DeepEqual(fields[name], want) {
			t.Errorf("field %s = %#v, want %#v", name, fields[name], want)
		}
	}
}

func TestDefaultsAreReadable(t *testing.T) {
	l := New()
	l.flags.VisitAll(func(f *pflag.Flag) {
		before := f.Value.String()
		if err := f.Value.Set(before); err != nil || f.Value.String() != before {
			t.Errorf("--%s=%q: read as %q, error %v", f.Name, before, f.Value, err)
		}
	})
	if !reflect.DeepEqual(l.config, Default()) {
		t.Errorf("got  %+v\nwant %+v", l.config, Default())
	}
}

func TestAliases(t *testing.T) {
	for _, tc := range []struct {
		name, file string
		env, args  []string
	}{
		{name: "flags", args: []string{"--hostname-override=n", "--proxy-mode=ebpf", "--profiling"}},
		{name: "environment", env: []string{"LBPROXY_HOSTNAME_OVERRIDE=n", "LBPROXY_PROXY_MODE=ebpf", "LBPROXY_ENABLE_PROFILING=true"}},
		{name: "file", file: "{hostnameOverride: \"n\", proxyMode: ebpf, enableProfiling: true}"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, c, err := load(t, tc.file, tc.env, tc.args)
			if err != nil || c.NodeName != "n" || c.Dataplane != EBPF || !c.Profiling {
				t.Errorf("got %q, %q, %t, %v; want n, ebpf, true", c.NodeName, c.Dataplane, c.Profiling, err)
			}
		})
	}
}

// TestModesOfKubeProxy: those that lbproxy has not are auto, and it can be told why.
func TestModesOfKubeProxy(t *testing.T) {
	for _, tc := range []struct {
		file             string
		env, args        []string
		dataplane, other string
	}{
		{dataplane: Auto},
		{args: []string{"--proxy-mode="}, dataplane: Auto},
		{args: []string{"--proxy-mode=iptables"}, dataplane: IPTables},
		{args: []string{"--proxy-mode=nftables"}, dataplane: Auto, other: "nftables"},
		{file: "proxyMode: ipvs", dataplane: Auto, other: "ipvs"},
		{file: "proxyMode: ipvs", env: []string{"LBPROXY_DATAPLANE=iptables"}, dataplane: IPTables},
		{args: []string{"--proxy-mode=ipvs", "--dataplane=ebpf"}, dataplane: EBPF},
	} {
		l, c, err := load(t, tc.file, tc.env, tc.args)
		if err != nil || c.Dataplane != tc.dataplane || l.ForeignMode() != tc.other {
			t.Errorf("%q %q %q: got %s, for mode %q, %v; want %s, %q", tc.file, tc.env, tc.args, c.Dataplane, l.ForeignMode(), err, tc.dataplane, tc.other)
		}
	}
}

func TestBadValues(t *testing.T) {
	for _, tc := range []struct {
		name, file string
		env, args  []string
		want       []string // parts of the message
	}{
		{name: "dataplane from the environment", env: []string{"LBPROXY_PROXY_MODE=kernelspace"},
			want: []string{"dataplane (from LBPROXY_PROXY_MODE)", `"kernelspace": want auto, ebpf or iptables`}},
		{name: "iptables backend", env: []string{"LBPROXY_IPTABLES_BACKEND=xtables"},
			want: []string{"iptables-backend (from LBPROXY_IPTABLES_BACKEND)", `"xtables": want auto or nft or legacy`}},
		{name: "masquerade bit", file: "iptablesMasqueradeBit: 32", want: []string{"iptables-masquerade-bit (from ", `"32": want a number from 0 to 31`}},
		{name: "masquerade bit is no byte", file: "iptablesMasqueradeBit: 256", want: []string{"iptables-masquerade-bit (from ", `"256": want a number from 0 to 31`}},
		{name: "negative masquerade bit", file: "iptablesMasqueradeBit: -1", want: []string{"from 0 to 31"}},
		{name: "conntrack size", file: "conntrackMin: 2147483648", want: []string{"conntrack-min (from ", "want a number from 0 to 2147483647"}},
		{name: "conntrack timeout", file: "conntrackUDPTimeout: 1500ms", want: []string{"conntrack-udp-timeout (from ", "1.5s: want whole seconds, or 0s"}},
		{name: "negative conntrack timeout", file: "conntrackTCPTimeoutCloseWait: -1s", want: []string{"conntrack-tcp-timeout-close-wait (from ", "-1s: want whole"}},
		{name: "conntrack timeout without a unit", file: "conntrackTCPTimeoutEstablished: 60", want: []string{`"60": want a duration such as 30s`}},
		{name: "algorithm from the file", file: "algorithm: fastest",
			want: []string{"algorithm (from ", "c.yaml: algorithm): unknown algorithm"}},
		{name: "oom score", file: "oomScoreAdj: 1001", want: []string{"oom-score-adj (from ", `"1001": want a number from -1000 to 1000`}},
		{name: "range", env: []string{"LBPROXY_CLUSTER_CIDR=10.0.0.1"}, want: []string{"cluster-cidr", "want a range such as 10.0.0.0/8"}},
		{name: "prefix", env: []string{"LBPROXY_NODEPORT_ADDRESSES=primary,secondary"},
			want: []string{"nodeport-addresses (from LBPROXY_NODEPORT_ADDRESSES)", `"secondary": want a range such as`, "or primary, localhost, all"}},
		{name: "local mode", file: "detectLocalMode: clustercidr", want: []string{"detect-local-mode (from ", "want ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix"}},
		{name: "bridge without a name", file: "detectLocalMode: BridgeInterface", want: []string{"detect-local-mode (from ", "BridgeInterface needs pod-bridge-interface"}},
		{name: "devices without a prefix", args: []string{"--detect-local-mode=InterfaceNamePrefix", "--pod-bridge-interface=cbr0"}, want: []string{
			"detect-local-mode (from --detect-local-mode): InterfaceNamePrefix needs pod-interface-name-prefix",
			"pod-bridge-interface (from --pod-bridge-interface): needs detect-local-mode BridgeInterface, which is InterfaceNamePrefix (from --detect-local-mode)"}},
		{name: "prefix without its mode", env: []string{"LBPROXY_POD_INTERFACE_NAME_PREFIX=veth"}, want: []string{
			"pod-interface-name-prefix (from LBPROXY_POD_INTERFACE_NAME_PREFIX): needs detect-local-mode InterfaceNamePrefix, which is ClusterCIDR (from default)"}},
		{name: "long device name", env: []string{"LBPROXY_POD_BRIDGE_INTERFACE=a123456789012345"}, want: []string{"pod-bridge-interface", "at most 15 bytes"}},
		{name: "glob for a prefix", file: "podInterfaceNamePrefix: veth*", want: []string{"pod-interface-name-prefix", `"veth*" is not a device's name`}},
		{name: "short audit period", file: "auditPeriod: 10ms", want: []string{"audit-period (from ", "want 1s or more, or 0s for never"}},
		{name: "port", env: []string{"LBPROXY_HEALTHZ_BIND_ADDRESS=localhost:1"}, want: []string{`"localhost:1": want ip:port`}},
		{name: "level", file: "logLevel: loud", want: []string{"debug, info, warn or error"}},
		{name: "too many", file: "maxSlots: 4294967296", want: []string{"max-slots", "from 0 to"}},
		{name: "negative", file: "maxSlots: -1", want: []string{"from 0 to"}},
		{name: "period", file: "syncPeriod: 30", want: []string{`"30": want a duration such as 30s`}},
		{name: "short period", file: "syncPeriod: 1ms", want: []string{"want 1s or more"}},
		{name: "slow start", file: "slowStart: 30", want: []string{"slow-start (from ", `"30": want a duration such as 30s`}},
		{name: "negative slow start", env: []string{"LBPROXY_SLOW_START=-1s"}, want: []string{"slow-start (from LBPROXY_SLOW_START): -1s: want 0s, or from 100ms to 1h0m0s"}},
		{name: "long slow start", file: "slowStart: 61m", want: []string{"slow-start", "61m: want 0s"}},
		{name: "seed", env: []string{"LBPROXY_HASH_SEED=ff"}, want: []string{`hash-seed (from LBPROXY_HASH_SEED): "ff": want a number of 64 bits`}},
		{name: "large seed", env: []string{"LBPROXY_HASH_SEED=18446744073709551616"}, want: []string{"hash-seed", "64 bits"}},
		{name: "negative seed", file: "hashSeed: -1", want: []string{"hash-seed", "64 bits"}},
		{name: "fraction", file: "hashSeed: 1.5", want: []string{"hash-seed", "64 bits"}},
		{name: "boolean", env: []string{"LBPROXY_MASQUERADE_ALL=maybe"}, want: []string{"masquerade-all", "want true or false"}},
		{name: "relative", file: "bpffs: bpf", want: []string{"absolute path"}},
		{name: "device", file: "devices: [a/b]", want: []string{`"a/b" is not a device`}},
		{name: "auto and more", file: "devices: [auto, eth0]", want: []string{`"auto" is not a device`}},
		{name: "misspelt", file: "clusterCidr: 10.0.0.0/8", want: []string{"clusterCidr (from ", "did you mean clusterCIDR?"}},
		{name: "unknown", file: "speed: 9", want: []string{"speed (from ", "unknown field"}},
		{name: "the file names itself", file: "config: x", want: []string{"unknown field"}},
		{name: "twice", file: "{algorithm: random, algorithm: random}", want: []string{"already set"}},
		{name: "alias and name", env: []string{"LBPROXY_NODE_NAME=a", "LBPROXY_HOSTNAME_OVERRIDE=b"},
			want: []string{"node-name (from LBPROXY_NODE_NAME): is also given as LBPROXY_HOSTNAME_OVERRIDE"}},
		{name: "nested", file: "devices: {a: b}", want: []string{"one value or a list"}},
		{name: "list of lists", file: "devices: [[a]]", want: []string{"item 1"}},
		{name: "text that YAML takes for a boolean", file: "nodeName: no", want: []string{"YAML reads it as false: want text, in quotes"}},
		{name: "text that YAML takes for a number", file: "nodeName: 010", want: []string{"YAML reads it as 8"}},
		{name: "null", file: "bpffs:", want: []string{"has no value"}},
		{name: "not YAML", file: "a: b: c", want: []string{"config (from --config)", "c.yaml"}},
		{name: "kube-proxy's file", file: "kind: KubeProxyConfiguration", want: []string{"is a KubeProxyConfiguration"}},
		{name: "missing file", args: []string{"--config=/nonexistent.yaml"}, want: []string{"/nonexistent.yaml: no such file"}},
		{name: "two sources of Services", file: "manifests: /m", args: []string{"--kubeconfig=/k"},
			want: []string{"c.yaml: manifests): excludes kubeconfig (from --kubeconfig)"}},
		{name: "probe", file: "healthCheck: icmp", want: []string{"health-check (from ", `"icmp": want none, tcp, http, https, grpc or exec`}},
		{name: "interval", env: []string{"LBPROXY_HEALTH_CHECK_INTERVAL=0s"}, want: []string{"health-check-interval (from LBPROXY_HEALTH_CHECK_INTERVAL): 0s: want from 100ms to 1h0m0s"}},
		{name: "fast interval", file: "healthCheckFastInterval: 0", want: []string{"health-check-fast-interval (from ", "0: want from 100ms"}},
		{name: "timeout", args: []string{}, file: "healthCheckTimeout: 61s", want: []string{"health-check-timeout", "want from 10ms to 1m0s"}},
		{name: "rise", file: "healthCheckRise: 256", want: []string{"health-check-rise", `"256": want a whole number from 1 to 255`}},
		{name: "port of probes", file: "healthCheckPort: 65536", want: []string{"health-check-port", "from 1 to 65535"}},
		{name: "percent", file: "healthPanic: 101", want: []string{"health-panic", `"101": want a whole number from 0 to 100`}},
		{name: "passive", env: []string{"LBPROXY_HEALTH_PASSIVE=maybe"}, want: []string{"health-passive", "want true or false"}},
		{name: "exec of nothing", file: "healthCheck: exec", want: []string{"health-check (from ", "exec needs health-check-script", "exec needs health-script-dir"}},
		{name: "scripts of root", file: `healthScriptUser: "0:0"`, want: []string{"health-script-user", `"0:0": want uid:gid, numbers from 1 to 4294967294`}},
		{name: "user without a group", file: `healthScriptUser: "1000"`, want: []string{"health-script-user", "want uid:gid"}},
		{name: "no user", file: `healthScriptUser: "4294967295:1"`, want: []string{"health-script-user", "want uid:gid"}},
		{name: "scripts anywhere", file: "healthScriptDir: scripts", want: []string{"health-script-dir", "absolute path"}},
		{name: "all at once", file: "{logLevel: loud, bpffs: bpf}", want: []string{"log-level", "bpffs"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, c, err := load(t, tc.file, tc.env, tc.args)
			if err == nil {
				t.Fatalf("no error; got %+v", c)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q\nlacks %q", err, want)
				}
			}
		})
	}
}

func TestNodePortAddresses(t *testing.T) {
	node := lb.Node{Known: true, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}}
	for _, tc := range []struct{ text, want, served string }{
		{"", "", "127.0.0.1 192.0.2.7 198.51.100.1 ::1 2001:db8::7"},
		{"all", "0.0.0.0/0,::/0", "127.0.0.1 192.0.2.7 198.51.100.1 ::1 2001:db8::7"},
		{"primary", "primary", "192.0.2.7 2001:db8::7"},
		{"localhost", "127.0.0.0/8,::1/128", "127.0.0.1 ::1"},
		{"198.51.100.0/24", "198.51.100.0/24", "198.51.100.1 ::1 2001:db8::7"},
		{"198.51.100.9/24", "198.51.100.0/24", "198.51.100.1 ::1 2001:db8::7"}, // bits beyond the length
		{"198.51.100.0/24, primary", "primary,198.51.100.0/24", "192.0.2.7 198.51.100.1 2001:db8::7"},
		{"localhost,primary,all", "primary,127.0.0.0/8,::1/128,0.0.0.0/0,::/0", "127.0.0.1 192.0.2.7 198.51.100.1 ::1 2001:db8::7"},
	} {
		a, err := nodePortAddresses(tc.text)
		if err != nil {
			t.Errorf("%q: %v", tc.text, err)
		}
		if got := formatNodePortAddresses(a); got != tc.want {
			t.Errorf("%q: shown as %q, want %q", tc.text, got, tc.want)
		}
		var served []string
		for _, addr := range []string{"127.0.0.1", "192.0.2.7", "198.51.100.1", "::1", "2001:db8::7"} {
			if a.Serves(netip.MustParseAddr(addr), node) {
				served = append(served, addr)
			}
		}
		if got := strings.Join(served, " "); got != tc.served {
			t.Errorf("%q: served at %q, want %q", tc.text, got, tc.served)
		}
	}
}

func TestLocalDetector(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want lb.LocalDetector
	}{
		{nil, lb.LocalDetector{Mode: lb.LocalClusterCIDR}},
		{[]string{"--detect-local-mode=", "--cluster-cidr=10.0.0.0/8"},
			lb.LocalDetector{Mode: lb.LocalClusterCIDR, Ranges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}},
		{[]string{"--cluster-cidr=10.0.0.1/8,fd00::1/8"}, // bits beyond the length
			lb.LocalDetector{Mode: lb.LocalClusterCIDR, Ranges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}}},
		{[]string{"--detect-local-mode=NodeCIDR", "--cluster-cidr=10.0.0.0/8", "--manifests=/m"}, lb.LocalDetector{Mode: lb.LocalNodeCIDR}},
		{[]string{"--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cbr0"},
			lb.LocalDetector{Mode: lb.LocalBridgeInterface, Interface: "cbr0"}},
		{[]string{"--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=cali"},
			lb.LocalDetector{Mode: lb.LocalInterfaceNamePrefix, Interface: "cali"}},
	} {
		_, c, err := load(t, "", nil, tc.args)
		if got := c.LocalDetector(); err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%q: got %+v, %v, want %+v", tc.args, got, err, tc.want)
		}
	}
}

func TestAuditPeriod(t *testing.T) {
	for text, want := range map[string]time.Duration{"0": 0, "0s": 0, "1s": time.Second, "2m": 2 * time.Minute} {
		if _, c, err := load(t, "", nil, []string{"--audit-period=" + text}); err != nil || c.AuditPeriod != want {
			t.Errorf("--audit-period=%s: got %v, %v, want %v", text, c.AuditPeriod, err, want)
		}
	}
}

func TestUnknownVariables(t *testing.T) {
	l, _, err := load(t, "", []string{
		"LBPROXY_ALGO=random", "LBPROXY_SERVICE_HOST=10.0.0.1", "LBPROXY_PORT=tcp://10.0.0.1:80",
		"LBPROXY_PORT_80_TCP_ADDR=10.0.0.1", "LBPROXY_SERVICE_PORT_HTTP=80", "PATH=/bin",
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := l.Unknown(), []string{"LBPROXY_ALGO"}; !reflect.DeepEqual(got, want) {
		t.Errorf("unknown = %q, want %q", got, want)
	}
}

func TestSeeds(t *testing.T) {
	for text, want := range map[string]uint64{
		"0": 0, "010": 10, "0x10": 16, "0XfF": 255, "18446744073709551615": 1<<64 - 1, "0xffffffffffffffff": 1<<64 - 1,
	} {
		if _, c, err := load(t, "", nil, []string{"--hash-seed=" + text}); err != nil || c.HashSeed != want {
			t.Errorf("--hash-seed=%s: got %d, %v, want %d", text, c.HashSeed, err, want)
		}
	}
	for text, want := range map[string]uint64{"18446744073709551615": 1<<64 - 1, `"0x10"`: 16, "7": 7} {
		if _, c, err := load(t, "hashSeed: "+text, nil, nil); err != nil || c.HashSeed != want {
			t.Errorf("hashSeed: %s: got %d, %v, want %d", text, c.HashSeed, err, want)
		}
	}
}

func TestSubsetOfFlags(t *testing.T) {
	l := New()
	fs := pflag.NewFlagSet("get", pflag.ContinueOnError)
	l.Flags(fs, "bpffs", "config")
	if fs.Lookup("bpffs") == nil || fs.Lookup("kubeconfig") != nil {
		t.Error("want bpffs and not kubeconfig")
	}
	if err := fs.Parse([]string{"--bpffs=/b"}); err != nil {
		t.Fatal(err)
	}
	c, err := l.Load([]string{"LBPROXY_BPFFS=/other", "LBPROXY_LOG_LEVEL=error"})
	if err != nil || c.BPFFS != "/b" || c.LogLevel != slog.LevelError {
		t.Errorf("got %q, %v, %v", c.BPFFS, c.LogLevel, err)
	}
}
