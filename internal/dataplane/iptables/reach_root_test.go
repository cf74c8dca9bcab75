// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestRepairInTwoSteps flushes the rules of many Services: all are served before all rules
// are back. One chain less, or no jump, is no reason for that.
func TestRepairInTwoSteps(t *testing.T) {
	for _, backend := range []string{nftBackend, legacyBackend} {
		t.Run(backend, func(t *testing.T) {
			ownNetns(t)
			d, err := Open(Options{Backend: backend, Families: []lb.Family{lb.IPv4}, MasqueradeBit: 14, LockFile: filepath.Join(t.TempDir(), "lock")})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			var svcs []*dataplane.Service
			for i := range manyPools {
				svcs = append(svcs, plainService(t, fmt.Sprint("s", i), lb.IPv4, fmt.Sprintf("10.96.%d.%d:80", i/256, i%256)))
			}
			mustSync(t, d, dataplane.Delta{Full: true, Put: svcs})
			r := d.families[lb.IPv4].runner
			before := r.saved(t)
			dir := t.TempDir()
			r.restoreProgram = script(t, `tee "`+dir+`/$(ls `+dir+` | wc -l)" | `+r.restoreProgram+` "$@"`)
			repair := func() (texts []string) {
				t.Helper()
				if err := d.repair(t.Context()); err != nil {
					t.Fatal(err)
				}
				if after := r.saved(t); after != before {
					t.Error("the rules are not what they were")
				}
				for {
					file := filepath.Join(dir, fmt.Sprint(len(texts)))
					text, err := os.ReadFile(file)
					if err != nil {
						break
					}
					texts = append(texts, string(text))
				}
				for i := range texts {
					if err := os.Remove(filepath.Join(dir, fmt.Sprint(i))); err != nil {
						t.Fatal(err)
					}
				}
				return texts
			}
			do(t, r.program, "-w", "-t", "nat", "-F", hashName("T-", "vips"))
			do(t, r.program, "-w", "-t", "nat", "-D", "PREROUTING", "-j", servicesChain)
			if texts := repair(); slices.ContainsFunc(texts, func(text string) bool { return servedAtOnce(text) > 0 }) {
				t.Error("pools that are there are passed over")
			}
			do(t, r.program, "-w", "-t", "nat", "-F")
			texts := repair()
			at := slices.IndexFunc(texts, func(text string) bool { return servedAtOnce(text) == manyPools })
			all := slices.IndexFunc(texts, func(text string) bool { return strings.Contains(text, ":LBP-C-") })
			if at < 0 || all < at || len(texts[at]) > len(texts[all])/2 {
				t.Errorf("of %d restores number %d serves all Services, and number %d has all rules", len(texts), at, all)
			}
		})
	}
}

// servedAtOnce is how many frontends rules lead to a backend at once.
func servedAtOnce(rules string) int {
	return strings.Count(rules, "--dport 80 -j DNAT --to-destination")
}
