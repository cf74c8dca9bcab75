// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

var update = flag.Bool("update", false, "write the golden files")

// golden fails unless text is what the file says.
func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(string(want), text); diff != "" {
		t.Errorf("%s (-want +got), go test -update writes it:\n%s", path, diff)
	}
}

// text is out for people.
func (out rendered) text() string {
	var b strings.Builder
	for _, tree := range []struct {
		name    string
		entries map[spot]string
	}{{"addresses", out.vips}, {"node ports", out.nodePorts}} {
		for _, s := range slices.Sorted(maps.Keys(tree.entries)) {
			fmt.Fprintf(&b, "%s %x %s\n", tree.name, string(s), tree.entries[s])
		}
	}
	for _, c := range out.chains {
		fmt.Fprintf(&b, "chain %s\n", c.name)
		for _, r := range c.rules {
			fmt.Fprintf(&b, "  %s\n", r)
		}
	}
	for _, s := range out.affinities {
		fmt.Fprintf(&b, "set %s %s timeout %d\n", s.name, s.typ, s.timeout)
	}
	var members []string
	for _, m := range out.members {
		text := fmt.Sprintf("member %s %s", m.set, m.addr)
		if m.port > 0 {
			text += fmt.Sprintf(" %s %d", m.proto, m.port)
		}
		if m.from.IsValid() {
			text += fmt.Sprintf(" %s", m.from)
		}
		members = append(members, text)
	}
	slices.Sort(members)
	for _, m := range slices.Compact(members) {
		fmt.Fprintln(&b, m)
	}
	fmt.Fprintln(&b, "local", out.hairpins)
	if out.approx != "" {
		fmt.Fprintln(&b, "approximated:", out.approx)
	}
	return b.String()
}

// spec is a Service of a test.
type spec struct {
	family    lb.Family
	proto     lb.Proto
	algorithm string
	backends  []lb.Backend
	frontends []lb.Frontend
	terms     lb.Terms
}

func (s spec) service(t *testing.T) *dataplane.Service {
	t.Helper()
	svc := &dataplane.Service{
		Name: lb.ServiceName{
			Object: lb.Object{Namespace: "default", Name: "web"}, Port: "http",
			Proto: cmp.Or(s.proto, lb.TCP), Family: cmp.Or(s.family, lb.IPv4),
		},
		Balance:   lb.Balance{Algorithm: cmp.Or(s.algorithm, "random")},
		Frontends: s.frontends, Terms: s.terms,
	}
	here := slices.DeleteFunc(slices.Clone(s.backends), func(b lb.Backend) bool { return !b.Local })
	svc.Cluster, svc.Local = testPool(t, svc.Balance.Algorithm, s.backends), testPool(t, svc.Balance.Algorithm, here)
	if len(s.backends) > 0 {
		svc.Local.Empty = lb.Drop
	}
	return svc
}

func testPool(t *testing.T, algorithm string, bs []lb.Backend) dataplane.Pool {
	t.Helper()
	ms := make([]algo.Member, len(bs))
	for i, b := range bs {
		ms[i] = algo.Member{ID: uint64(i + 1), Weight: b.Weight}
	}
	table, err := algo.Build(algorithm, ms)
	if err != nil {
		t.Fatal(err)
	}
	return dataplane.Pool{Backends: bs, Table: table}
}

// endpoints returns n backends, the first of them local.
func endpoints(n, local int, f lb.Family) []lb.Backend {
	bs := make([]lb.Backend, n)
	for i := range bs {
		a := netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i + 1)})
		if f == lb.IPv6 {
			a = netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i + 1)})
		}
		bs[i] = lb.Backend{Addr: netip.AddrPortFrom(a, 8080), Weight: lb.DefaultWeight, Local: i < local}
	}
	return bs
}

func at(typ lb.FrontendType, addr string, proto lb.Proto) lb.Frontend {
	fe := lb.Frontend{
		FrontendKey: lb.FrontendKey{Addr: netip.MustParseAddrPort(addr), Proto: proto},
		Type:        typ, Masquerade: lb.MasqueradeAlways,
	}
	if typ == lb.ClusterIP {
		fe.Masquerade = lb.MasqueradeOffCluster
	}
	return fe
}

func externalLocal(fe lb.Frontend) lb.Frontend {
	fe.Outside, fe.Masquerade = lb.ScopeLocal, lb.MasqueradeNever
	return fe
}

func ranged(fe lb.Frontend) lb.Frontend {
	fe.Ranged = true
	return fe
}

var pods4 = []string{"-s 10.244.0.0/16"}

// TestRender compares what Services become with files.
func TestRender(t *testing.T) {
	weighted := endpoints(3, 1, lb.IPv4)
	weighted[0].Weight, weighted[1].Weight = 300, 0
	ip, ip6 := at(lb.ClusterIP, "10.96.0.1:80", lb.TCP), at(lb.ClusterIP, "[fd00:10:96::1]:80", lb.UDP)
	balancer, port := at(lb.LoadBalancer, "172.32.0.1:80", lb.TCP), at(lb.NodePort, "0.0.0.0:30080", lb.TCP)
	for name, s := range map[string]spec{
		"cluster-ip":       {backends: endpoints(3, 1, lb.IPv4), frontends: []lb.Frontend{ip}},
		"cluster-ip-six":   {family: lb.IPv6, proto: lb.UDP, backends: endpoints(2, 2, lb.IPv6), frontends: []lb.Frontend{ip6}},
		"weights":          {backends: weighted, frontends: []lb.Frontend{ip}},
		"load-balancer":    {backends: endpoints(2, 0, lb.IPv4), frontends: []lb.Frontend{port, ip, balancer}},
		"external-local":   {backends: endpoints(3, 2, lb.IPv4), frontends: []lb.Frontend{externalLocal(port), ip, externalLocal(balancer)}},
		"external-away":    {backends: endpoints(2, 0, lb.IPv4), frontends: []lb.Frontend{externalLocal(port), ip, externalLocal(balancer)}},
		"no-endpoints":     {frontends: []lb.Frontend{port, ip, balancer}},
		"source-ranges":    {backends: endpoints(1, 0, lb.IPv4), frontends: []lb.Frontend{ip, ranged(balancer)}, terms: lb.Terms{SourceRanges: prefixes("0.0.0.0/0", "192.0.2.0/24")}},
		"ranges-empty":     {frontends: []lb.Frontend{ip, ranged(balancer)}, terms: lb.Terms{SourceRanges: prefixes("192.0.2.0/24")}},
		"affinity":         {backends: weighted, frontends: []lb.Frontend{ip}, terms: lb.Terms{Affinity: 3 * time.Hour}},
		"affinity-local":   {backends: endpoints(2, 1, lb.IPv4), frontends: []lb.Frontend{ip, externalLocal(balancer)}, terms: lb.Terms{Affinity: time.Minute}},
		"health-port":      {backends: endpoints(1, 1, lb.IPv4), frontends: []lb.Frontend{externalLocal(balancer)}, terms: lb.Terms{HealthPort: 32000}},
		"round-robin":      {algorithm: "round-robin", backends: endpoints(3, 0, lb.IPv4), frontends: []lb.Frontend{ip}},
		"least-connection": {algorithm: "least-connection", backends: endpoints(2, 0, lb.IPv4), frontends: []lb.Frontend{ip}},
	} {
		t.Run(name, func(t *testing.T) {
			out := render(s.service(t), &facts{pods: pods4, bpf: true}, [2][]float64{})
			golden(t, name, out.text())
		})
	}
}

func prefixes(texts ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, text := range texts {
		ps = append(ps, netip.MustParsePrefix(text))
	}
	return ps
}

// TestRoots compares the chains that are always there with files.
func TestRoots(t *testing.T) {
	node := lb.Node{Known: true, Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.11"), netip.MustParseAddr("fd00:30::11")}, PodCIDRs: prefixes("10.244.1.0/24")}
	for name, r := range map[string]roots{
		"roots": {
			family: lb.IPv4, randomFully: true, localhost: true,
			local: lb.LocalDetector{Mode: lb.LocalClusterCIDR, Ranges: prefixes("10.244.0.0/16", "fd00:10:244::/48")},
		},
		"roots-primary": {
			family: lb.IPv4, randomFully: true, node: node, nodePorts: lb.NodePortAddresses{Primary: true, Ranges: prefixes("192.0.2.0/24")},
			local: lb.LocalDetector{Mode: lb.LocalNodeCIDR},
		},
		"roots-six":            {family: lb.IPv6, node: node, liberal: true, local: lb.LocalDetector{Mode: lb.LocalInterfaceNamePrefix, Interface: "veth"}},
		"roots-bridge-unknown": {family: lb.IPv6, local: lb.LocalDetector{Mode: lb.LocalNodeCIDR}},
	} {
		t.Run(name, func(t *testing.T) {
			r.mark, r.vips, r.ports, r.hairpins = 1<<14, "LBP-T-vips", "LBP-T-ports", "LBP-T-hairpins"
			var b strings.Builder
			for _, c := range append(r.nat(), r.filter()...) {
				fmt.Fprintf(&b, "chain %s\n", c.name)
				for _, rule := range c.rules {
					fmt.Fprintf(&b, "  %s\n", rule)
				}
			}
			golden(t, name, b.String())
		})
	}
}

// TestRuleBudget bounds how many rules a Service has: one for a frontend, one for a
// backend, and few more. kube-proxy has three or four for a backend.
func TestRuleBudget(t *testing.T) {
	for _, row := range []struct {
		name  string
		most  int
		terms lb.Terms
		n     int
	}{
		{"cluster IP", 13, lb.Terms{}, 10},
		{"of many", 1100, lb.Terms{}, 1000},
		{"of very many", 5700, lb.Terms{}, 5000},
		{"with affinity", 54, lb.Terms{Affinity: time.Hour}, 10},
	} {
		s := spec{backends: endpoints(row.n, 1, lb.IPv4), frontends: []lb.Frontend{at(lb.ClusterIP, "10.96.0.1:80", lb.TCP)}, terms: row.terms}
		out := render(s.service(t), &facts{pods: pods4, bpf: true}, [2][]float64{})
		rules := len(out.vips) + len(out.nodePorts)
		for _, c := range out.chains {
			rules += len(c.rules)
		}
		t.Logf("%s, %d backends: %d rules in %d chains", row.name, row.n, rules, len(out.chains))
		if rules > row.most {
			t.Errorf("%s: %d rules for %d backends, want at most %d", row.name, rules, row.n, row.most)
		}
	}
}

// TestOneBackendChangesFewChains: the others are the same, so they are not written.
func TestOneBackendChangesFewChains(t *testing.T) {
	bs := endpoints(1000, 0, lb.IPv4)
	sums := func(bs []lb.Backend) map[string]sum {
		s := spec{backends: bs, frontends: []lb.Frontend{at(lb.ClusterIP, "10.96.0.1:80", lb.TCP)}}
		m := map[string]sum{}
		for _, c := range render(s.service(t), &facts{}, [2][]float64{}).chains {
			m[c.name] = sumOf(c)
		}
		return m
	}
	before, after := sums(bs), sums(slices.Delete(slices.Clone(bs), 500, 501))
	changed := 0
	for name, s := range after {
		if before[name] != s {
			changed++
		}
	}
	t.Logf("%d of %d chains", changed, len(after))
	if changed > 3 {
		t.Errorf("one of 1000 backends less changes %d chains, want at most 3", changed)
	}
}
