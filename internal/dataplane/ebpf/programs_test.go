// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"os"
	"path/filepath"
	"testing"
)

// TestSNATPorts: apart from the ports of the node's own sockets, and from NodePorts
// where there is enough room below them.
func TestSNATPorts(t *testing.T) {
	for _, tc := range []struct {
		local  string
		lo, hi uint16
	}{
		{"32768\t60999\n", 1024, 29999},
		{"20000 40000", 40001, 65535},
		{"30000 60000", 1024, 29999},
		{"25000 60999", 1024, 24999},
		{"1024 40000", 40001, 65535},
		{"1500 65000", 1024, 65535},
		{"nonsense", 1024, 29999},
	} {
		file := filepath.Join(t.TempDir(), "range")
		if err := os.WriteFile(file, []byte(tc.local), 0o600); err != nil {
			t.Fatal(err)
		}
		if lo, hi := snatPorts(file); lo != tc.lo || hi != tc.hi {
			t.Errorf("local ports %q: masquerades with %d..%d, want %d..%d", tc.local, lo, hi, tc.lo, tc.hi)
		}
	}
}
