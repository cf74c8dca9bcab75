// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"math"
	"os"
	"path/filepath"
	"testing"
)

// TestTrackRoom: what is made known leaves room for new connections.
func TestTrackRoom(t *testing.T) {
	for _, tc := range []struct {
		limit, count string
		want         int
	}{
		{"1000", "0", 500},
		{"1000", "600", 200},
		{"1000", "1000", 0},
		{"1000", "1200", 0}, // it was lowered
		{"0", "1200", math.MaxInt},
		{"", "1200", math.MaxInt},
		{"1000", "", math.MaxInt},
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
	}
}
