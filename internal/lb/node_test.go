// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func addresses(words string) (out []netip.Addr) {
	for w := range strings.FieldsSeq(words) {
		out = append(out, netip.MustParseAddr(w))
	}
	return out
}

func prefixes(words string) (out []netip.Prefix) {
	for w := range strings.FieldsSeq(words) {
		out = append(out, netip.MustParsePrefix(w))
	}
	return out
}

func TestNodeEqual(t *testing.T) {
	base := func() Node {
		return Node{Known: true, Addrs: addresses("10.0.0.1 fd00::1"), PodCIDRs: prefixes("10.244.0.0/24"), Zone: "a"}
	}
	if !base().Equal(base()) {
		t.Error("a Node is not equal to its like")
	}
	for name, edit := range map[string]func(*Node){
		"known":     func(n *Node) { n.Known = false },
		"address":   func(n *Node) { n.Addrs = n.Addrs[:1] },
		"order":     func(n *Node) { slices.Reverse(n.Addrs) },
		"pod range": func(n *Node) { n.PodCIDRs[0] = netip.MustParsePrefix("10.244.0.0/25") },
		"zone":      func(n *Node) { n.Zone = "b" },
		"leaving":   func(n *Node) { n.Leaving = true },
	} {
		other := base()
		edit(&other)
		if base().Equal(other) || other.Equal(base()) {
			t.Errorf("%s: %+v is equal to %+v", name, other, base())
		}
	}
}

func TestNodePortAddressesServe(t *testing.T) {
	const both = "172.30.0.11 2001:db8::11 198.51.100.1"
	for _, tc := range []struct {
		name    string
		at      NodePortAddresses
		node    string
		served  string
		refused string
	}{
		{"nothing is said", NodePortAddresses{}, both, "172.30.0.11 127.0.0.1 ::1 10.9.9.9 fd00::1", ""},
		{"a range", NodePortAddresses{Ranges: prefixes("172.30.0.0/16 fd00::/8")}, both, "172.30.0.11 172.30.255.255 fd00::1", "172.31.0.1 127.0.0.1 ::1 2001:db8::11"},
		{"a range of one family says nothing of the other", NodePortAddresses{Ranges: prefixes("172.30.0.0/16")}, both, "172.30.0.11 2001:db8::11 ::1", "127.0.0.1 198.51.100.1"},
		{"loopback", NodePortAddresses{Ranges: prefixes("127.0.0.0/8 ::1/128")}, both, "127.0.0.1 127.9.9.9 ::1", "172.30.0.11 2001:db8::11"},
		{"primary", NodePortAddresses{Primary: true}, both, "172.30.0.11 198.51.100.1 2001:db8::11", "172.30.0.12 127.0.0.1 ::1 fd00::1"},
		{"primary of a Node of one family", NodePortAddresses{Primary: true}, "172.30.0.11", "172.30.0.11 fd00::1 ::1", "10.9.9.9"},
		{"primary of a Node that is not known", NodePortAddresses{Primary: true}, "", "172.30.0.11 fd00::1", ""},
		{"primary and a range", NodePortAddresses{Primary: true, Ranges: prefixes("127.0.0.0/8")}, both, "172.30.0.11 127.0.0.1 2001:db8::11", "10.9.9.9 ::1"},
		{"everything by a range", NodePortAddresses{Ranges: prefixes("0.0.0.0/0 ::/0")}, both, "10.9.9.9 127.0.0.1 ::1", ""},
	} {
		node := Node{Addrs: addresses(tc.node)}
		for _, a := range addresses(tc.served) {
			if !tc.at.Serves(a, node) {
				t.Errorf("%s: %s is not served on %v", tc.name, a, node.Addrs)
			}
		}
		for _, a := range addresses(tc.refused) {
			if tc.at.Serves(a, node) {
				t.Errorf("%s: %s is served on %v", tc.name, a, node.Addrs)
			}
		}
	}
}

func TestParseLocalMode(t *testing.T) {
	for _, m := range []LocalMode{LocalClusterCIDR, LocalNodeCIDR, LocalBridgeInterface, LocalInterfaceNamePrefix} {
		if got, ok := ParseLocalMode(m.String()); got != m || !ok {
			t.Errorf("ParseLocalMode(%q) = %v, %t", m, got, ok)
		}
	}
	for _, text := range []string{"", "clustercidr", "Cluster", "NodeCIDR "} {
		if got, ok := ParseLocalMode(text); got != LocalNone || ok {
			t.Errorf("ParseLocalMode(%q) = %v, %t, want none", text, got, ok)
		}
	}
}

func TestLocalDetector(t *testing.T) {
	node := Node{PodCIDRs: prefixes("10.244.7.0/24")}
	for _, tc := range []struct {
		name      string
		d         LocalDetector
		detects   bool
		ranges    []netip.Prefix
		pods, not string // devices: name, or name<master
	}{
		{"none", LocalDetector{Interface: "eth"}, false, nil, "", "eth0 cni0"},
		{"cluster", LocalDetector{Mode: LocalClusterCIDR, Ranges: prefixes("10.244.0.0/16"), Interface: "eth"}, true, prefixes("10.244.0.0/16"), "", "eth0 cni0"},
		{"cluster without a range", LocalDetector{Mode: LocalClusterCIDR}, false, nil, "", "eth0"},
		{"node", LocalDetector{Mode: LocalNodeCIDR, Ranges: prefixes("10.0.0.0/8")}, true, node.PodCIDRs, "", "eth0"},
		{"bridge", LocalDetector{Mode: LocalBridgeInterface, Interface: "cni0", Ranges: prefixes("10.0.0.0/8")}, true, nil, "cni0 veth1<cni0", "cni eth0 cni01 veth1<cni1 eth0<br0"},
		{"prefix", LocalDetector{Mode: LocalInterfaceNamePrefix, Interface: "cali"}, true, nil, "cali cali123 eth0<cali9", "cal xcali eth0 veth1<br0"},
	} {
		if got := tc.d.Detects(); got != tc.detects {
			t.Errorf("%s: Detects() = %t", tc.name, got)
		}
		if got := tc.d.PodRanges(node); !slices.Equal(got, tc.ranges) {
			t.Errorf("%s: PodRanges = %v, want %v", tc.name, got, tc.ranges)
		}
		for list, want := range map[string]bool{tc.pods: true, tc.not: false} {
			for w := range strings.FieldsSeq(list) {
				name, master, _ := strings.Cut(w, "<")
				if got := tc.d.PodDevice(name, master); got != want {
					t.Errorf("%s: PodDevice(%q, %q) = %t", tc.name, name, master, got)
				}
			}
		}
	}
}

// TestKnowsByFamily: a family of which nothing is said has no pods, whatever is said of
// the other one.
func TestKnowsByFamily(t *testing.T) {
	both := prefixes("10.244.0.0/16 fd00:244::/32")
	for _, tc := range []struct {
		name string
		d    LocalDetector
		pods []netip.Prefix // of the Node
		want [2]bool
	}{
		{"none", LocalDetector{Ranges: both}, both, [2]bool{}},
		{"cluster, without a range", LocalDetector{Mode: LocalClusterCIDR}, both, [2]bool{}},
		{"cluster, IPv4", LocalDetector{Mode: LocalClusterCIDR, Ranges: both[:1]}, both, [2]bool{true, false}},
		{"cluster, IPv6", LocalDetector{Mode: LocalClusterCIDR, Ranges: both[1:]}, both, [2]bool{false, true}},
		{"cluster, both", LocalDetector{Mode: LocalClusterCIDR, Ranges: both}, nil, [2]bool{true, true}},
		{"node, not known", LocalDetector{Mode: LocalNodeCIDR, Ranges: both}, nil, [2]bool{}},
		{"node, IPv6", LocalDetector{Mode: LocalNodeCIDR, Ranges: both}, both[1:], [2]bool{false, true}},
		{"node, both", LocalDetector{Mode: LocalNodeCIDR}, both, [2]bool{true, true}},
		{"bridge", LocalDetector{Mode: LocalBridgeInterface, Interface: "cni0"}, nil, [2]bool{true, true}},
		{"prefix", LocalDetector{Mode: LocalInterfaceNamePrefix, Interface: "cali"}, nil, [2]bool{true, true}},
	} {
		for i, f := range []Family{IPv4, IPv6} {
			if got := tc.d.Knows(f, Node{PodCIDRs: tc.pods}); got != tc.want[i] {
				t.Errorf("%s, %s: %t, want %t", tc.name, f, got, tc.want[i])
			}
		}
	}
}

func TestShorten(t *testing.T) {
	for _, tc := range []struct {
		text  string
		limit int
		want  string
	}{
		{"", 3, ""}, {"abc", 3, "abc"}, {"abcd", 3, "..."}, {"abcdefgh", 6, "abc..."},
		{"ab\u20acdef", 6, "ab..."}, {"a\u20acdefg", 7, "a\u20ac..."}, {"\x80\x80\x80\x80\x80\x80", 5, "..."},
	} {
		if got := Shorten(tc.text, tc.limit); got != tc.want {
			t.Errorf("%q to %d: %q, want %q", tc.text, tc.limit, got, tc.want)
		}
	}
}

func TestTermsEqual(t *testing.T) {
	base := func() Terms {
		return Terms{Affinity: time.Hour, SourceRanges: prefixes("10.0.0.0/8"), Draining: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:80")}}
	}
	if !base().Equal(base()) || !(Terms{}).Equal(Terms{SourceRanges: []netip.Prefix{}}) {
		t.Error("Terms are not equal to their like")
	}
	for name, edit := range map[string]func(*Terms){
		"affinity": func(x *Terms) { x.Affinity = time.Minute },
		"ranges":   func(x *Terms) { x.SourceRanges[0] = netip.MustParsePrefix("10.0.0.0/9") },
		"draining": func(x *Terms) { x.Draining = nil },
		"reset":    func(x *Terms) { x.Reset = true },
	} {
		other := base()
		edit(&other)
		if base().Equal(other) {
			t.Errorf("%s: %+v is equal to %+v", name, other, base())
		}
	}
}

func TestPartMatters(t *testing.T) {
	for _, tc := range []struct {
		part Part
		with string // of the algorithms
	}{
		{0, "random hash ip-hash least-time"},
		{PartHashKey, "hash"},
		{PartPrefix, "ip-hash"},
		{PartSignal, "least-time"},
		{PartSlowStart, "random least-time"},
	} {
		for _, a := range []string{"random", "hash", "ip-hash", "least-time"} {
			want := slices.Contains(strings.Fields(tc.with), a)
			if got := tc.part.Matters(a); got != want {
				t.Errorf("part %d with %s: %t, want %t", tc.part, a, got, want)
			}
		}
	}
}
