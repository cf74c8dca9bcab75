// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/iptables"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// What is in testdata are the rules of kube-proxy 1.37.2 for one set of Services, in both
// modes; test/trial makes them.
func testdata(t testing.TB, file string) string {
	t.Helper()
	text, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// saved splits the output of iptables-save.
func saved(text string, f lb.Family) (all []iptables.Saved) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "*"); ok {
			all = append(all, iptables.Saved{Family: f, Backend: "nft", Table: name})
		} else if !strings.HasPrefix(line, "#") && len(all) > 0 {
			last := &all[len(all)-1]
			last.Lines = append(last.Lines, line)
		}
	}
	return all
}

func readRules(t *testing.T, mode string) *Rules {
	t.Helper()
	r := newRules()
	if mode == "iptables" {
		for f, file := range map[lb.Family]string{lb.IPv4: "iptables.txt", lb.IPv6: "ip6tables.txt"} {
			for _, s := range saved(testdata(t, file), f) {
				r.addSaved(s)
			}
		}
		return r
	}
	for f, file := range map[lb.Family]string{lb.IPv4: "nft.json", lb.IPv6: "nft6.json"} {
		if err := r.addNFT(f, []byte(testdata(t, file))); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func TestOutcomes(t *testing.T) {
	pod := caller{name: "pod", addr: netip.MustParseAddr("10.244.0.1"), pod: true}
	out := caller{name: outside, addr: netip.MustParseAddr("203.0.113.9")}
	known := caller{name: outside, addr: netip.MustParseAddr("198.51.100.9")} // in a range
	node := caller{name: "node", addr: netip.MustParseAddr("172.30.0.11"), local: true}
	six := caller{name: outside, addr: netip.MustParseAddr("2001:db8::9")}
	const two, three = "10.244.1.11:8080 10.244.1.12:8080", "10.244.1.11:8080 10.244.1.12:8080 10.244.2.11:8080"
	for _, tc := range []struct {
		what, to, service string
		from              caller
		want              string // backends, or what becomes of it
		masked            bool
		affinity          int
	}{
		{"cluster IP", "10.96.3.1:80/TCP", "shop/plain:http", pod, "10.244.1.11:8080 10.244.1.12:8080 10.244.1.13:8080", false, 0},
		{"cluster IP from outside", "10.96.3.1:80/TCP", "shop/plain:http", out, "10.244.1.11:8080 10.244.1.12:8080 10.244.1.13:8080", true, 0},
		{"UDP", "10.96.3.1:53/UDP", "shop/plain:dns", pod, "10.244.1.11:8080 10.244.1.12:8080 10.244.1.13:8080", false, 0},
		{"cluster IP of a local one", "10.96.3.2:80/TCP", "shop/local:http", out, three, true, 0},
		{"local", "0.0.0.0:30082/TCP", "shop/local:http", out, two, false, 0},
		{"local from a pod", "172.32.0.2:80/TCP", "shop/local:http", pod, three, false, 0},
		{"local from the node", "172.32.1.2:80/TCP", "shop/local:http", node, three, true, 0},
		{"local without endpoints", "0.0.0.0:30083/TCP", "shop/away:http", out, "drop", false, 0},
		{"the same from a pod", "0.0.0.0:30083/TCP", "shop/away:http", pod, "10.244.2.11:8080", false, 0},
		{"who is in no range", "172.32.0.4:80/TCP", "shop/ranged", out, "drop", false, 0},
		{"who is in one", "172.32.0.4:80/TCP", "shop/ranged", known, two, true, 600},
		{"a node port has no ranges", "0.0.0.0:30084/TCP", "shop/ranged", out, two, true, 600},
		{"no endpoints", "10.96.3.5:80/TCP", "shop/nobody:http", pod, "reject", false, 0},
		{"IPv6", "[fd00:10:96::36]:80/TCP", "shop/six:http", six, "[fd00:10:244:1::11]:8080", true, 0},
	} {
		for _, mode := range []string{"iptables", "nftables"} {
			rules := readRules(t, mode)
			fe := rules.frontends[key(t, tc.to)]
			if fe == nil {
				t.Errorf("%s, %s: no frontend %s", mode, tc.what, tc.to)
				continue
			}
			got := rules.outcome(fe, tc.from)
			text := got.refusal
			if len(got.shares) > 0 {
				text = backendsText(got)
			}
			if text == "" && fe.ranges != nil {
				text = "drop" // by a rule of table filter, for all who get that far
			}
			if text != tc.want || got.masquerade != tc.masked || tc.affinity != got.affinity || fe.service != tc.service {
				t.Errorf("%s, %s: %s: %q masquerade %v affinity %d, want %s: %q %v %d", mode, tc.what,
					fe.service, text, got.masquerade, got.affinity, tc.service, tc.want, tc.masked, tc.affinity)
			}
			if len(got.shares) > 0 && sharesText(got.shares) != "equal" {
				t.Errorf("%s, %s: shares %v", mode, tc.what, got.shares)
			}
		}
	}
}

func key(t *testing.T, s string) lb.FrontendKey {
	t.Helper()
	addr, proto, _ := strings.Cut(s, "/")
	p, err := lb.ParseProto(proto)
	if err != nil {
		t.Fatal(err)
	}
	return lb.FrontendKey{Addr: netip.MustParseAddrPort(addr), Proto: p}
}

func TestPlan(t *testing.T) {
	for _, tc := range []struct {
		what   string
		edit   [2]string
		chains string   // some that go
		stay   []string // chains of kube-proxy's
		jumps  int
	}{
		{what: "all goes", chains: "KUBE-SERVICES KUBE-MARK-MASQ KUBE-POSTROUTING KUBE-FORWARD KUBE-PROXY-CANARY", jumps: 12},
		{
			what:   "FORWARD drops",
			edit:   [2]string{":FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:KUBE-EXT", ":FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:KUBE-EXT"},
			chains: "KUBE-SERVICES KUBE-MARK-MASQ", stay: []string{"KUBE-FORWARD"}, jumps: 11,
		},
		{
			what:   "a chain of CNI uses the mark",
			edit:   [2]string{"-A PREROUTING -m comment", "-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ\n-A PREROUTING -m comment"},
			chains: "KUBE-SERVICES", stay: []string{"KUBE-MARK-MASQ", "KUBE-POSTROUTING"}, jumps: 11,
		},
		{
			what:   "FORWARD ends with REJECT",
			edit:   [2]string{"-A FORWARD -m conntrack", "-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n-A FORWARD -m conntrack"},
			chains: "KUBE-SERVICES KUBE-NODEPORTS", stay: []string{"KUBE-FORWARD"}, jumps: 11,
		},
		{
			what:   "a chain of FORWARD drops",
			edit:   [2]string{"-A FORWARD -m conntrack", "-A FORWARD -j SITE\n-A SITE -g SITE-END\n-A SITE-END -j DROP\n-A FORWARD -m conntrack"},
			chains: "KUBE-SERVICES", stay: []string{"KUBE-FORWARD"}, jumps: 11,
		},
		{
			what:   "only chains of the two proxies drop",
			edit:   [2]string{"-A FORWARD -m conntrack", "-A FORWARD -j LBP-FORWARD\n-A LBP-FORWARD -j REJECT\n-A FORWARD -m conntrack"},
			chains: "KUBE-FORWARD", jumps: 12,
		},
		{
			what:   "INPUT ends with DROP",
			edit:   [2]string{"-A INPUT -j KUBE-FIREWALL", "-A INPUT -j KUBE-FIREWALL\n-A INPUT -j DROP"},
			chains: "KUBE-SERVICES KUBE-FORWARD", stay: []string{"KUBE-NODEPORTS"}, jumps: 11,
		},
		{
			what:   "INPUT drops, without health check node ports",
			edit:   [2]string{"-A KUBE-NODEPORTS -p tcp -m comment --comment \"shop/local:http health check node port\" -m tcp --dport 32000 -j ACCEPT", "-A INPUT -j DROP"},
			chains: "KUBE-NODEPORTS", jumps: 12,
		},
		{
			what:   "a rule of somebody's own jumps to the mark",
			edit:   [2]string{"-A PREROUTING -m comment", "-A PREROUTING -i wg0 -j KUBE-MARK-MASQ\n-A PREROUTING -m comment"},
			chains: "KUBE-SERVICES", stay: []string{"KUBE-MARK-MASQ", "KUBE-POSTROUTING"}, jumps: 11,
		},
		{
			what:   "one jumps to a Service",
			edit:   [2]string{"-A PREROUTING -m comment", "-A PREROUTING -i wg0 -j KUBE-SVC-BEWYIUOQNGT53GB4\n-A PREROUTING -m comment"},
			chains: "KUBE-SERVICES", jumps: 11,
			stay: strings.Fields("KUBE-MARK-MASQ KUBE-POSTROUTING KUBE-SEP-6WFPUAOLW2PLU3GE KUBE-SEP-6XYEDWB2B3RTCPZT KUBE-SEP-EENKCM6324XGDNOZ KUBE-SVC-BEWYIUOQNGT53GB4"),
		},
	} {
		text := testdata(t, "iptables.txt")
		if tc.edit[0] != "" {
			text = strings.Replace(text, tc.edit[0], tc.edit[1], 1)
		}
		var gone, kept []string
		jumps := 0
		for _, s := range saved(text, lb.IPv4) {
			r := plan(s)
			gone, jumps = append(gone, r.chains...), jumps+len(r.jumps)
			for chain := range r.kept {
				kept = append(kept, chain)
			}
		}
		slices.Sort(kept)
		for _, chain := range strings.Fields(tc.chains) {
			if !slices.Contains(gone, chain) {
				t.Errorf("%s: %s does not go", tc.what, chain)
			}
		}
		if slices.Contains(gone, "KUBE-FIREWALL") {
			t.Errorf("%s: the kubelet's chain goes", tc.what)
		}
		if !slices.Equal(kept, tc.stay) || jumps != tc.jumps {
			t.Errorf("%s: %v stay, %d jumps go, want %v and %d", tc.what, kept, jumps, tc.stay, tc.jumps)
		}
	}
}

func TestTexts(t *testing.T) {
	s := saved("*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n"+
		"-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n-A KUBE-SERVICES -j KUBE-SVC-A\nCOMMIT\n", lb.IPv4)
	r := plan(s[0])
	if got, want := r.cut(), "*nat\n-D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\nCOMMIT\n"; got != want {
		t.Errorf("jumps: %q, want %q", got, want)
	}
	if got, want := r.clear(), "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n-X KUBE-SERVICES\n-X KUBE-SVC-A\nCOMMIT\n"; got != want {
		t.Errorf("chains: %q, want %q", got, want)
	}
}

// service is one of the testdata's, with what lbproxy makes of it.
func service(to string, backends ...string) *dataplane.Service {
	svc := &dataplane.Service{
		Name:      lb.ServiceName{Object: lb.Object{Namespace: "shop", Name: "one"}, Port: "http", Proto: lb.TCP, Family: lb.IPv4},
		Balance:   lb.Balance{Algorithm: "random"},
		Frontends: []lb.Frontend{{FrontendKey: lb.FrontendKey{Addr: netip.MustParseAddrPort(to), Proto: lb.TCP}, Type: lb.ClusterIP, Masquerade: lb.MasqueradeOffCluster}},
	}
	for _, b := range backends {
		svc.Cluster.Backends = append(svc.Cluster.Backends, lb.Backend{Addr: netip.MustParseAddrPort(b), Weight: lb.DefaultWeight})
	}
	return svc
}

func TestCompare(t *testing.T) {
	opts := Options{
		Local: lb.LocalDetector{Mode: lb.LocalClusterCIDR, Ranges: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}},
		Node:  lb.Node{Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.11")}},
	}
	one := key(t, "10.96.2.1:80/TCP")
	for _, tc := range []struct {
		what string
		svc  *dataplane.Service
		edit func(*dataplane.Service)
		want []string
	}{
		{"the same", service("10.96.2.1:80", "10.244.1.11:8081"), nil, nil},
		{"not served", nil, nil, []string{"fail frontend "}},
		{"no backends", service("10.96.2.1:80"), nil, []string{"fail backends outside, pod, node"}},
		{"another backend", service("10.96.2.1:80", "10.244.1.12:8081"), nil, []string{"warn backends outside, pod, node"}},
		{"weights", service("10.96.2.1:80", "10.244.1.11:8081", "10.244.1.12:8081"), func(s *dataplane.Service) { s.Cluster.Backends[1].Weight = 0 }, nil},
		{"source", service("10.96.2.1:80", "10.244.1.11:8081"), func(s *dataplane.Service) { s.Frontends[0].Masquerade = lb.MasqueradeNever }, []string{"warn source outside, node"}},
		{"affinity", service("10.96.2.1:80", "10.244.1.11:8081"), func(s *dataplane.Service) { s.Terms.Affinity = 1e9 }, []string{"warn affinity outside, pod, node"}},
	} {
		rules := readRules(t, "iptables")
		rules.frontends = map[lb.FrontendKey]*frontend{one: rules.frontends[one]}
		var svcs []*dataplane.Service
		if tc.svc != nil {
			if tc.edit != nil {
				tc.edit(tc.svc)
			}
			svcs = append(svcs, tc.svc)
		}
		diffs, n := Compare(rules, svcs, opts)
		var got []string
		for _, d := range diffs {
			got = append(got, d.Level+" "+d.What+" "+d.Caller)
		}
		if !slices.Equal(got, tc.want) || n != 1 {
			t.Errorf("%s: %q of %d, want %q", tc.what, got, n, tc.want)
		}
	}
}

func TestMissing(t *testing.T) {
	rules := readRules(t, "nftables")
	svcs := []*dataplane.Service{service("10.96.2.1:80", "10.244.1.11:8081"), service("10.96.9.9:80"), service("10.96.9.8:80", "10.244.1.11:8081")}
	if first, n := rules.missing(svcs); n != 1 || first != "10.96.9.8:80/TCP" {
		t.Errorf("%d are missing, such as %q, want 10.96.9.8:80/TCP alone", n, first)
	}
}

// oneService are kube-proxy's rules for one Service, with one endpoint.
const oneService = `*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SEP-A - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination ENDPOINT
-A KUBE-SERVICES -d CLUSTERIP -p tcp -m comment --comment "shop/one:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SVC-A -m comment --comment "shop/one:http -> ENDPOINT" -j KUBE-SEP-A
COMMIT
`

// TestStale: kube-proxy's rules are there, but cannot serve.
func TestStale(t *testing.T) {
	const pod, pod6 = "10.244.1.11:8081", "[fd00:10:244:1::11]:8081"
	four, six := service("10.96.2.1:80", pod), service("[fd00:10:96::21]:80", pod6)
	six.Name.Family, six.Name.Object.Name = lb.IPv6, "six"
	halfway := strings.NewReplacer( // lbproxy migrate was interrupted
		"-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n", "",
		"-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n", "")
	onlyOutput := strings.NewReplacer("-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n", "")
	type table struct {
		f       lb.Family
		backend string
		to      string
		edit    *strings.Replacer
	}
	same := strings.NewReplacer()
	now, now6 := table{lb.IPv4, "nft", pod, same}, table{lb.IPv6, "nft", pod6, same}
	for _, tc := range []struct {
		what   string
		tables []table
		svcs   []*dataplane.Service
		want   string // of the error
	}{
		{"of now", []table{now, now6}, []*dataplane.Service{four, six}, ""},
		{"endpoints of days ago", []table{{lb.IPv4, "nft", "10.244.1.99:8081", same}, now6}, []*dataplane.Service{four, six}, "1 Services: shop/one:http;"},
		{"a Service of days ago", []table{now, now6}, []*dataplane.Service{six}, "1 Services: shop/one:http;"},
		{"not one of now", []table{now}, []*dataplane.Service{four, six}, "no rules for 1 frontends"},
		{"IPv4 without jumps", []table{{lb.IPv4, "nft", pod, halfway}, now6}, []*dataplane.Service{four, six}, "no rules for 1 frontends of Services with endpoints, such as 10.96.2.1:80/TCP"},
		{"one jump", []table{{lb.IPv4, "nft", pod, onlyOutput}, now6}, []*dataplane.Service{four, six}, "such as 10.96.2.1:80/TCP"},
		{"jumps of the other backend", []table{{lb.IPv4, "legacy", pod, halfway}, {lb.IPv4, "nft", pod, halfway}, now6}, []*dataplane.Service{four, six}, "such as 10.96.2.1:80/TCP"},
		{"both backends, one is old", []table{now, {lb.IPv4, "legacy", "10.244.1.99:8081", same}, now6}, []*dataplane.Service{four, six}, "1 Services: shop/one:http;"},
		{"both backends, the other is old", []table{{lb.IPv4, "nft", "10.244.1.99:8081", same}, {lb.IPv4, "legacy", pod, same}, now6}, []*dataplane.Service{four, six}, "1 Services: shop/one:http;"},
		{"both backends", []table{now, {lb.IPv4, "legacy", pod, same}, now6}, []*dataplane.Service{four, six}, ""},
		{"old chains of the other backend", []table{now, {lb.IPv4, "legacy", "10.244.1.99:8081", halfway}, now6}, []*dataplane.Service{four, six}, ""},
	} {
		rules, serves := newRules(), &Found{}
		for _, tb := range tc.tables {
			ip := "10.96.2.1/32"
			if tb.f == lb.IPv6 {
				ip = "fd00:10:96::21/128"
			}
			s := saved(tb.edit.Replace(strings.NewReplacer("ENDPOINT", tb.to, "CLUSTERIP", ip).Replace(oneService)), tb.f)
			s[0].Backend = tb.backend
			rules.addSaved(s[0])
			serves.saved = append(serves.saved, s...)
		}
		err := Stale(rules, tc.svcs, Options{})
		if text := fmt.Sprint(err); tc.want == "" && err != nil || !strings.Contains(text, tc.want) {
			t.Errorf("%s: got %v, want %q", tc.what, err, tc.want)
		}
		if !serves.Serves() {
			t.Errorf("%s: one family serves, which is not seen", tc.what)
		}
	}
	s := saved(halfway.Replace(oneService), lb.IPv4)
	found := &Found{saved: s, tables: []removal{{saved: s[0], jumps: []string{"POSTROUTING -j KUBE-POSTROUTING"}}}}
	if found.Serves() {
		t.Error("kube-proxy serves with no jump but that of POSTROUTING")
	}
}

func FuzzRule(f *testing.F) {
	for line := range strings.Lines(testdata(f, "iptables.txt")) {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		r := newRules()
		for _, table := range []string{"nat", "filter"} {
			s := iptables.Saved{Family: lb.IPv4, Table: table, Lines: []string{
				line, "-A PREROUTING -j KUBE-SERVICES", "-A OUTPUT -j KUBE-SERVICES", "-A KUBE-SERVICES -d 10.0.0.1/32 -p tcp --dport 1 -j KUBE-SVC-A",
			}}
			r.addSaved(s)
			plan(s)
		}
		for _, fe := range r.frontends {
			r.outcome(fe, caller{addr: netip.MustParseAddr("10.0.0.9")})
		}
	})
}

func FuzzNFT(f *testing.F) {
	f.Add(testdata(f, "nft.json"))
	f.Fuzz(func(t *testing.T, text string) {
		r := newRules()
		if r.addNFT(lb.IPv4, []byte(text)) != nil {
			return
		}
		for _, fe := range r.frontends {
			r.outcome(fe, caller{addr: netip.MustParseAddr("10.0.0.9")})
		}
	})
}
