// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
)

// TestTrackRoom: what is made known leaves room for new connections.
func TestTrackRoom(t *testing.T) {
	for _, tc := range []struct {
		limit, count string
		want         int
		reserve      int
	}{
		{"1000", "0", 500, 500},
		{"1000", "300", 350, 200},
		{"1000", "600", 200, 0},
		{"1000", "1000", 0, 0},
		{"1000", "1200", 0, 0}, // it was lowered
		{"0", "1200", math.MaxInt / 2, math.MaxInt / 2},
		{"", "1200", math.MaxInt / 2, math.MaxInt / 2},
		{"1000", "", math.MaxInt / 2, math.MaxInt / 2},
	} {
		s := sysctls{root: t.TempDir()}
		if err := os.MkdirAll(s.file("net/netfilter"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"nf_conntrack_max": tc.limit, "nf_conntrack_count": tc.count} {
			if text == "" {
				continue
			}
			if err := os.WriteFile(filepath.Join(s.root, "net/netfilter", name), []byte(text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := trackRoom(s); got != tc.want {
			t.Errorf("%s of %s are used: room for %d, want %d", tc.count, tc.limit, got, tc.want)
		}
		if got := reserveRoom(s); got != tc.reserve {
			t.Errorf("%s of %s are used: room for %d reservations, want %d", tc.count, tc.limit, got, tc.reserve)
		}
	}
}

// TestFitting: entries that are there need no room, and of others the first get it.
func TestFitting(t *testing.T) {
	var flows []dataplane.Flow
	for port := range uint16(5) {
		flows = append(flows, dataplane.Flow{Client: netip.AddrPortFrom(netip.IPv4Unspecified(), port)})
	}
	have := map[dataplane.Flow]bool{flows[1]: true, flows[4]: true}
	for _, tc := range []struct {
		room int
		want []int
	}{{0, []int{1, 4}}, {1, []int{0, 1, 4}}, {2, []int{0, 1, 2, 4}}, {3, []int{0, 1, 2, 3, 4}}} {
		got, err := fitting(flows, have, tc.room)
		var ports []int
		for _, fl := range got {
			ports = append(ports, int(fl.Client.Port()))
		}
		if !slices.Equal(ports, tc.want) || (err == nil) != (len(got) == len(flows)) {
			t.Errorf("room for %d: %v, error %v, want %v", tc.room, ports, err, tc.want)
		}
	}
}
