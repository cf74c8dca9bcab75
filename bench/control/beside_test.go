// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestNewPods(t *testing.T) {
	b := []byte{1, 10, 200, 10, 200, 7, 8, 0, 10, 200, 9}
	var got []string
	for a := range newPods(b) {
		got = append(got, a.String())
	}
	if want := []string{"10.200.10.200", "10.200.7.8"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestRatios(t *testing.T) {
	one := func(numbers ...float64) *series {
		s := &series{}
		for _, x := range numbers {
			s.add([]float64{x, x, x + 100})
		}
		return s
	}
	a, b, base := one(12, 11, 14), one(20, 15, 30), one(10, 10)
	if got, want := ratios(a, b, nil), []float64{0.6, 11.0 / 15, 14.0 / 30}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := ratios(a, b, base), []float64{0.2, 0.2}; !slices.Equal(got, want) {
		t.Errorf("added: got %v, want %v", got, want)
	}
	if got, want := spreadOf([]float64{3, 1, 2}), (spread{2, 1, 3}); got != want {
		t.Errorf("spread: got %v, want %v", got, want)
	}
	if a.N != 9 || a.P50 != 14 || a.P99 != 114 || len(a.Blocks) != 3 {
		t.Errorf("got %+v", a)
	}
	a.add(nil)
	if len(a.Blocks) != 3 {
		t.Error("a block of nothing is a block")
	}
}

func TestCompareBeside(t *testing.T) {
	r := &report{}
	put := func(arm, row string, of float64) {
		s := &series{Arm: arm, Row: row}
		s.add([]float64{of})
		r.Beside = append(r.Beside, s)
	}
	put("lbproxy iptables-nft", rowP50, 10)
	put("iptables-nft 0s", rowP50, 100)
	put("lbproxy iptables-nft", rowTCP, 34)
	put("iptables-nft 0s", rowTCP, 40)
	put(bareName, rowTCP, 30)
	put("lbproxy iptables-nft", rowUDP, 34)
	put("iptables-nft 0s", rowUDP, 40) // nothing to add it to
	want := []string{"added, lbproxy iptables-nft / kube-proxy iptables-nft 0s: 0.400", "0.100 (0.100 .. 0.100), target <= 0.20: yes"}
	got := r.compareBeside()
	if len(got) != len(want) {
		t.Fatalf("got %q", got)
	}
	for i := range got {
		if !strings.Contains(got[i], want[i]) {
			t.Errorf("got %q, want %q in it: what is missed comes first", got[i], want[i])
		}
	}
}

// TestPairs: every arm that is compared is one that runs.
func TestPairs(t *testing.T) {
	names := map[string]bool{}
	for _, a := range rivals("lbproxy", "kube-proxy", false) {
		names[a.name] = true
	}
	for _, pair := range pairs {
		for _, name := range pair {
			if !names[name] {
				t.Errorf("%q is compared but does not run; these do: %v", name, slices.Sorted(maps.Keys(names)))
			}
		}
	}
	b := &bench{plan: quick}
	got := b.chooseRivals(rivals("", "", true), regexp.MustCompile("^lbproxy"), regexp.MustCompile("^1000 "))
	if len(got) != 2 {
		t.Errorf("%d rivals are lbproxy's, want 2", len(got))
	}
	if got := b.chooseRivals(rivals("", "", true), regexp.MustCompile("."), regexp.MustCompile("^44000 ")); len(got) != 0 {
		t.Errorf("%d rivals at another scale", len(got))
	}
}

// TestServed: every address that an endpoint can have leads to the pod that has them
// all, and neither that pod's own nor the client's does.
func TestServed(t *testing.T) {
	w, err := newWorld(scale{services: 20, endpoints: 3}, true)
	if err != nil {
		t.Fatal(err)
	}
	inside := func(a netip.Addr) bool {
		return slices.ContainsFunc(endpoints, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	for i, list := range w.slices {
		for _, sl := range list {
			if udp := *sl.Ports[0].Protocol == "UDP"; udp != (i%10 == 9) || udp != w.udp(i) {
				t.Errorf("Service %d: UDP %v", i, udp)
			}
			for _, ep := range sl.Endpoints {
				if a := netip.MustParseAddr(ep.Addresses[0]); !inside(a) {
					t.Errorf("nobody has %s", a)
				}
			}
		}
	}
	_, addr := w.change(3, 0)
	if last := plus(firstPod, 44_000*10-1); !inside(addr) || !inside(last) || inside(clientAddr) || inside(serverAddr) {
		t.Errorf("of %s, %s, %s and %s the first two are endpoints", addr, last, clientAddr, serverAddr)
	}
}
