// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
	"github.com/lbproxy/lbproxy/internal/server"
)

// exampleConfig is that of an agent, as the control socket tells it.
func exampleConfig() server.Config {
	return server.Config{
		Fields:  map[string]any{"algorithm": "least-connection", "clusterCIDR": []any{"10.244.0.0/16", "fd00::/48"}, "nodeName": "n1", "maxSlots": json.Number("7"), "profiling": false},
		Sources: map[string]string{"algorithm": "/etc/lbproxy/config.yaml: algorithm", "clusterCIDR": "--cluster-cidr", "nodeName": "LBPROXY_NODE_NAME"},
		File:    "/etc/lbproxy/config.yaml", Hash: "0123456789abcdef", Applied: exampleTime,
	}
}

func TestWhatIsNotInForceIsTold(t *testing.T) {
	a, _, stderr := fakeApp(exampleKernel())
	a.askConfig = func(context.Context, string) (server.Config, error) {
		c := exampleConfig()
		c.Rejected = "algorithm: bad"
		c.Waiting = []server.ConfigChange{{Field: "bpffs", From: "/a", To: "/b"}}
		return c, nil
	}
	want := "the file is rejected, what was read before is in force: algorithm: bad\na restart would apply bpffs: \"/b\" was \"/a\"\n"
	if code := a.execute([]string{"get", "config"}); code != exitOK || stderr.String() != want {
		t.Errorf("code %d, stderr %q, want %q", code, stderr, want)
	}
}

// addressPlane is told addresses.
type addressPlane struct {
	fakePlane
	mu        sync.Mutex
	pods      []netip.Prefix
	nodePorts lb.NodePortAddresses
}

func (p *addressPlane) SetAddresses(pods []netip.Prefix, nodePorts lb.NodePortAddresses) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pods, p.nodePorts = pods, nodePorts
}

// rig is a node whose configuration is a file.
type rig struct {
	t     *testing.T
	path  string
	plane *addressPlane
	node  *node
	conf  *configured
	level *verbosity

	oom    []int // that were set
	events []string
}

func newRig(t *testing.T, file string) *rig {
	t.Helper()
	r := &rig{t: t, path: filepath.Join(t.TempDir(), "config.yaml"), plane: &addressPlane{}, level: &verbosity{}}
	r.plane.services = map[string]*dataplane.Service{}
	r.write(file)
	env := []string{"LBPROXY_CONFIG=" + r.path, "LBPROXY_MANIFESTS=" + t.TempDir()}
	loader := config.New(algo.Names()...)
	cfg, err := loader.Load(env)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	own := &ownNode{}
	src, err := newSource(cfg, own.set, log)
	if err != nil {
		t.Fatal(err)
	}
	a := &app{kernel: kernel{setOOMScore: func(n int) error { r.oom = append(r.oom, n); return nil }}}
	r.conf = newConfigured(cfg, loader, env, log)
	if r.node, err = a.newNode(r.conf, own, src, r.plane, choice{dataplane: config.EBPF}, newApproximations(log), log, r.level); err != nil {
		t.Fatal(err)
	}
	r.conf.event = func(typ, reason, message string) { r.events = append(r.events, typ+" "+reason+" "+message) }
	return r
}

func (r *rig) write(file string) {
	r.t.Helper()
	if err := os.WriteFile(r.path, []byte(file), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) reload(file string) {
	r.t.Helper()
	r.write(file)
	r.conf.reload()
}

// liveValues are values of every live field, and what tells that it is in force.
var liveValues = map[string]struct {
	value   string
	applied func(r *rig) bool
}{
	"algorithm":        {"least-connection", func(r *rig) bool { return r.node.agent.Defaults().Algorithm == "least-connection" }},
	"slowStart":        {"9s", func(r *rig) bool { return r.node.agent.Defaults().SlowStart == 9*time.Second }},
	"nodeWeights":      {"false", func(r *rig) bool { return r.node.src.store.Settings().IgnoreNodeWeights }},
	"masqueradeAll":    {"true", func(r *rig) bool { return r.node.src.store.Settings().MasqueradeAll }},
	"allowExternalIPs": {"false", func(r *rig) bool { return r.node.src.store.Settings().DenyExternalIPs }},
	"clusterCIDR": {"10.9.0.0/16", func(r *rig) bool {
		return slices.Equal(r.plane.pods, []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")})
	}},
	"nodePortAddresses":  {"primary", func(r *rig) bool { return r.plane.nodePorts.Primary && r.node.checks.Addrs().Primary }},
	"auditPeriod":        {"7s", func(r *rig) bool { return r.node.agent.AuditPeriod() == 7*time.Second }},
	"syncPeriod":         {"7s", func(r *rig) bool { return r.conf.now().SyncPeriod == 7*time.Second }},
	"profiling":          {"true", func(r *rig) bool { return r.conf.now().Profiling }},
	"logLevel":           {"error", func(r *rig) bool { return r.level.level.Level() == slog.LevelError }},
	"oomScoreAdj":        {"-7", func(r *rig) bool { return len(r.oom) == 1 && r.oom[0] == -7 }},
	"metricsDetail":      {"node", func(r *rig) bool { return !r.hasMetric("lbproxy_services_unlisted") }},
	"metricsMaxServices": {"1", func(r *rig) bool { return r.conf.now().MetricsMaxServices == 1 }},
}

func (r *rig) hasMetric(name string) bool {
	families, err := r.node.metrics.Gatherer().Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return true
		}
	}
	return false
}

// TestEveryLiveFieldIsApplied: what the table calls live is in force after a reload, and
// only then.
func TestEveryLiveFieldIsApplied(t *testing.T) {
	health := map[string]string{
		"healthCheck": "tcp", "healthCheckPort": "81", "healthCheckPath": "/x", "healthCheckHost": "x.example", "healthCheckHeaders": "'X: 1'",
		"healthCheckExpect": "204", "healthCheckBody": "x", "healthCheckVerify": "true", "healthCheckService": "x.Y", "healthCheckScript": "x",
		"healthCheckInterval": "9s", "healthCheckFastInterval": "900ms", "healthCheckTimeout": "900ms", "healthCheckRise": "9",
		"healthCheckFall": "9", "healthCheckGrace": "9s", "healthPassive": "false", "healthMaxEjected": "9", "healthPanic": "9", "healthDrain": "true",
	}
	for _, f := range config.New(algo.Names()...).Table() {
		if !f.Live {
			continue
		}
		r := newRig(t, "logFormat: text")
		value, applied := "", func(*rig) bool { return false }
		switch tc, ok := liveValues[f.Name]; {
		case ok:
			value, applied = tc.value, tc.applied
		case health[f.Name] != "":
			value = health[f.Name]
			applied = func(r *rig) bool {
				return r.node.monitor.Defaults() == r.conf.now().Health && r.node.src.store.Settings().DefaultHealth == r.conf.now().Health &&
					r.conf.now().Health != lb.DefaultHealth()
			}
		}
		if value == "" || applied(r) {
			t.Errorf("%s: %q, nothing tells whether it is in force", f.Name, value)
			continue
		}
		r.reload("logFormat: text\n" + f.Name + ": " + value)
		if told := r.conf.tell(); !applied(r) || told.Rejected != "" || len(told.Waiting) > 0 {
			t.Errorf("%s: %s is not in force: %+v", f.Name, value, told)
		}
		if len(r.events) != 1 || !strings.HasPrefix(r.events[0], "Normal ConfigReloaded "+f.Name+": ") {
			t.Errorf("%s: events %q", f.Name, r.events)
		}
	}
}

// TestReloadOfANode: what cannot change waits, what cannot be used changes nothing, and
// both are told.
func TestReloadOfANode(t *testing.T) {
	r := newRig(t, "algorithm: round-robin")
	r.reload("algorithm: hash\nbpffs: /b\nlogFormat: json")
	told := r.conf.tell()
	if told.Fields["algorithm"] != "hash" || told.Fields["bpffs"] != "/sys/fs/bpf" || told.Reloads != 1 || told.Hash != r.conf.loader.Hash() ||
		!reflect.DeepEqual(told.Waiting, []server.ConfigChange{{Field: "bpffs", From: "/sys/fs/bpf", To: "/b"}, {Field: "logFormat", From: "text", To: "json"}}) {
		t.Errorf("told is %+v", told)
	}
	r.reload("algorithm: fastest")
	bad := r.conf.tell()
	if bad.Fields["algorithm"] != "hash" || bad.Hash != told.Hash || bad.Rejections != 1 || bad.Reloads != 1 || !strings.Contains(bad.Rejected, "unknown algorithm") || len(bad.Waiting) != 2 {
		t.Errorf("told is %+v", bad)
	}
	if d := r.node.agent.Defaults().Algorithm; d != "hash" {
		t.Errorf("the agent has %s, want hash", d)
	}
	r.reload("algorithm: hash")
	if good := r.conf.tell(); good.Rejected != "" || len(good.Waiting) > 0 || good.Reloads != 2 {
		t.Errorf("told is %+v", good)
	}
	want := []string{
		`Normal ConfigReloaded algorithm: "hash" was "round-robin"`,
		`Warning ConfigNeedsRestart a restart would apply bpffs: "/b" was "/sys/fs/bpf", logFormat: "json" was "text"`,
		`Warning ConfigRejected what was read before goes on: algorithm (from ` + r.path + `: algorithm): unknown algorithm "fastest": want one of ` + strings.Join(algo.Names(), ", "),
	}
	if !slices.Equal(r.events, want) {
		t.Errorf("events are\n%s\nwant\n%s", strings.Join(r.events, "\n"), strings.Join(want, "\n"))
	}
}

// TestRunReadsAgain: a process does at SIGHUP, and when the file changes.
func TestRunReadsAgain(t *testing.T) {
	r := newRig(t, "algorithm: round-robin")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.conf.run(ctx) }()
	await := func(what, algorithm string, act func()) {
		t.Helper()
		for deadline := time.Now().Add(2 * time.Minute); r.conf.now().Algorithm != algorithm; <-time.After(20 * time.Millisecond) {
			act()
			if time.Now().After(deadline) {
				t.Fatalf("%s: the algorithm is %s, want %s", what, r.conf.now().Algorithm, algorithm)
			}
		}
	}
	r.write("algorithm: hash # a change by itself")
	await("the file changed", "hash", func() {})
	r.write("algorithm: random")
	await("SIGHUP", "random", func() {
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
