// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestEqualRules: what does the same is equal, and nothing else is.
func TestEqualRules(t *testing.T) {
	for _, class := range [][]string{
		{"-d 10.96.0.1 -p tcp --dport 80 -g LBP-X", "-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -g LBP-X", "-p 6 -d 10.96.0.1/32 -m tcp --dport 80:80 -g LBP-X"},
		{"-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j LBP-X"},
		{"-d 10.96.0.1/32 -p udp -m udp --dport 80 -g LBP-X"},
		{"-d 10.96.0.1/32 -p tcp -m tcp --dport 80:81 -g LBP-X"},
		{"! -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -g LBP-X"},
		{"-s 10.96.0.1/32 -p tcp -m tcp --dport 80 -g LBP-X"},
		{"-s 0.0.0.0/0 -j ACCEPT", "-j ACCEPT"},
		{"-j MARK --or-mark 0x4000", "-j MARK --set-xmark 0x4000/0x4000", "-j MARK --set-xmark 16384/16384"},
		{"-j MARK --set-xmark 0x4000/0x0"},
		{"-j MARK --set-xmark 0x4000", "-j MARK --set-xmark 0x4000/0xffffffff"},
		{"-m mark --mark 0x4000/0x4000 -j RETURN"},
		{"-m mark ! --mark 0x4000/0x4000 -j RETURN"},
		{"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"},
		{"-m conntrack ! --ctstate RELATED,ESTABLISHED -j ACCEPT"},
		{"-m statistic --mode random --probability 0.33333333349 -j DROP", "-m statistic --mode random --probability 0.33333333333 -j DROP"},
		{"-m statistic --mode random --probability 0.33333333400 -j DROP"},
		{"-m statistic --mode nth --every 3 -j DROP", "-m statistic --mode nth --every 3 --packet 0 -j DROP"},
		{"-m set --match-set LBP-A src -j DROP", `-m set --match-set "LBP-A" src -j DROP`},
		{"-m set --match-set LBP-A dst -j DROP"},
		{"-m set --match-set LBP-A src -m set --match-set LBP-B src -j DROP"},
		{"-m set --match-set LBP-B src -m set --match-set LBP-A src -j DROP"},
		{"-p tcp -j REJECT --reject-with tcp-reset"},
		{"-p tcp -j REJECT", "-p tcp -j REJECT --reject-with icmp-port-unreachable", "-p tcp -j REJECT --reject-with icmp6-port-unreachable"},
		{"-j SET --add-set LBP-A src --exist --timeout 10", "-j SET --add-set LBP-A src --timeout 10 --exist"},
		{"-j SET --del-set LBP-A src"},
		{"-j MASQUERADE --random-fully"},
		{"-j MASQUERADE"},
		{`-m comment --comment "a b"`, `-m comment --comment 'a b'`, `-m comment --comment "a\ b"`},
		{`-m comment --comment ab`, `-m comment --comment "ab"`},
		{"-p tcp -j DNAT --to-destination [fd00:0::1]:80", "-p tcp -j DNAT --to-destination [fd00::1]:80"},
	} {
		for _, x := range class {
			a := mustParse(t, x)
			for _, y := range class {
				if !a.equal(mustParse(t, y)) {
					t.Errorf("%q and %q differ", x, y)
				}
			}
			for _, other := range allForms(t) {
				if a.equal(other) && !slices.Contains(class, other.text) {
					t.Errorf("%q and %q are equal", x, other.text)
				}
			}
		}
	}
}

// allForms are the first rules of the classes above that are most alike.
func allForms(t *testing.T) []rule {
	var rules []rule
	for line := range strings.Lines(`-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -g LBP-X
-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j LBP-X
-d 10.96.0.1/32 -p udp -m udp --dport 80 -g LBP-X
-d 10.96.0.1/32 -p tcp -m tcp --dport 80:81 -g LBP-X
! -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -g LBP-X
-s 10.96.0.1/32 -p tcp -m tcp --dport 80 -g LBP-X
-j ACCEPT
-j MARK --set-xmark 0x4000/0x0
-j MARK --set-xmark 0x4000
-m mark --mark 0x4000/0x4000 -j RETURN
-m mark ! --mark 0x4000/0x4000 -j RETURN
-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-m conntrack ! --ctstate RELATED,ESTABLISHED -j ACCEPT
-m statistic --mode random --probability 0.33333333400 -j DROP
-m set --match-set LBP-A dst -j DROP
-m set --match-set LBP-B src -m set --match-set LBP-A src -j DROP
-p tcp -j REJECT --reject-with tcp-reset
-j SET --del-set LBP-A src
-j MASQUERADE
-m comment --comment ab
`) {
		rules = append(rules, mustParse(t, strings.TrimSpace(line)))
	}
	return rules
}

func mustParse(t *testing.T, text string) rule {
	t.Helper()
	r, err := parseRule(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestUnknownRules(t *testing.T) {
	for _, text := range []string{
		"-m recent --set", "-d nowhere -j DROP", "-d", "--dport x", "-m mark --mark z", "-j DNAT --to-destination 10.0.0.1",
		"-m bpf --bytecode 1,6", "-m bpf --bytecode \"2,6 0 0 1\"", "-m bpf --bytecode \"1,32 0 0 12\"",
		"-m statistic --mode third", "-m statistic --probability 1.5", "-m statistic --every 0", "-m addrtype --src-type ANYCAST",
	} {
		if _, err := parseRule(text); err == nil {
			t.Errorf("parseRule(%q) succeeds", text)
		}
	}
}

// TestWalk follows packets through jumps, gotos, marks, sets and returns.
func TestWalk(t *testing.T) {
	tr, err := newTracer([]chain{
		{"ROOT", []string{
			"-d 10.96.0.0/16 -p tcp -m tcp --dport 80 -j ONE",
			"-p udp -g GONE",
			"-m mark --mark 0x4000/0x4000 -j ACCEPT",
			"-m conntrack --ctstate RELATED,ESTABLISHED -j DROP",
			"-j REJECT",
		}},
		{"ONE", []string{"-i cali+ -j RETURN", "-m addrtype --src-type LOCAL -j MARK --set-xmark 0x4000/0x4000", "-m set --match-set IN src -g TWO", "-j RETURN", "-j DROP"}},
		{"TWO", []string{"-j SET --add-set OUT src --exist", "-p tcp -j DNAT --to-destination 10.0.0.1:8080"}},
		{"GONE", []string{"-j EMPTY"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var added []string
	tr.local = func(a netip.Addr) bool { return a == netip.MustParseAddr("10.1.0.1") }
	tr.inSet = func(set string, p *packet, dirs string) bool {
		return set == "IN" && dirs == "src" && p.src.Addr() == netip.MustParseAddr("10.1.0.2")
	}
	tr.change = func(set string, p *packet, _ string, add bool) {
		if add {
			added = append(added, set+" "+p.src.Addr().String())
		}
	}
	for _, tc := range []struct {
		name, src, dst, in string
		proto              lb.Proto
		mark               uint32
		states             []string
		want               verdict
		steps              int
	}{
		{"returns at once", "10.1.0.3:1", "10.96.0.1:80", "cali7", lb.TCP, 0, nil, verdict{target: "REJECT"}, 3},
		{"marked", "10.1.0.1:1", "10.96.0.1:80", "", lb.TCP, 0x8001, nil, verdict{target: "ACCEPT", mark: 0xc001}, 4},
		{"translated", "10.1.0.2:1", "10.96.0.1:80", "eth0", lb.TCP, 3, nil, verdict{target: "DNAT", to: netip.MustParseAddrPort("10.0.0.1:8080"), mark: 3}, 4},
		{"another port", "10.1.0.2:1", "10.96.0.1:81", "eth0", lb.TCP, 0, nil, verdict{target: "REJECT"}, 1},
		{"another address", "10.1.0.2:1", "10.97.0.1:80", "eth0", lb.TCP, 0, []string{"ESTABLISHED"}, verdict{target: "DROP"}, 1},
		{"goes and does not come back", "10.1.0.2:1", "10.96.0.1:80", "eth0", lb.UDP, 9, nil, verdict{mark: 9}, 2},
	} {
		got := tr.walk("ROOT", &packet{
			family: lb.IPv4, proto: tc.proto, src: netip.MustParseAddrPort(tc.src), dst: netip.MustParseAddrPort(tc.dst),
			in: tc.in, mark: tc.mark, states: tc.states,
		})
		if len(got.steps) != tc.steps {
			t.Errorf("%s: steps %q, want %d", tc.name, got.steps, tc.steps)
		}
		if got.steps = nil; !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
	if want := []string{"OUT 10.1.0.2"}; !slices.Equal(added, want) {
		t.Errorf("added %q, want %q", added, want)
	}
}

// TestNotIsOfOneCondition: "!" is of the condition behind it, and of no other one.
func TestNotIsOfOneCondition(t *testing.T) {
	r := mustParse(t, "! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate DNAT -m mark --mark 0x1/0x1 -j DROP")
	var got []bool
	for _, m := range r.matches {
		got = append(got, m.not)
	}
	if want := []bool{true, false, true, false}; !slices.Equal(got, want) {
		t.Errorf("%q: negated %v, want %v", r.text, got, want)
	}
}
