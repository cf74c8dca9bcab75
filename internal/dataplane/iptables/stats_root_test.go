// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// ownRules counts the rules in chains of lbproxy's own that the kernel has.
func ownRules(t *testing.T, r *runner, tab table) (n int) {
	t.Helper()
	for line := range strings.Lines(do(t, r.saveProgram, "-t", string(tab))) {
		if strings.HasPrefix(line, "-A "+prefix) {
			n++
		}
	}
	return n
}

// TestRuleStats: what is told of rules is what the kernel has.
func TestRuleStats(t *testing.T) {
	for _, backend := range []string{nftBackend, legacyBackend} {
		t.Run(backend, func(t *testing.T) {
			ownNetns(t)
			d, err := Open(Options{Backend: backend, MasqueradeBit: 14, LockFile: filepath.Join(t.TempDir(), "lock")})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			check := func(when string, failures uint64, all bool) {
				t.Helper()
				for _, st := range d.rules() {
					for _, ts := range st.Tables {
						if want := ownRules(t, d.families[st.Family].runner, table(ts.Name)); ts.Rules != want || want == 0 {
							t.Errorf("%s: %s table %s: %d rules, the kernel has %d", when, st.Family, ts.Name, ts.Rules, want)
						}
						if st.Family == lb.IPv4 && ts.Name == "nat" && ((ts.Written == ts.Rules) != all || ts.Written > ts.Rules || ts.Written == 0 || st.Failures != failures) {
							t.Errorf("%s: %d of %d rules written, %d failures; want all: %t, and %d", when, ts.Written, ts.Rules, st.Failures, all, failures)
						}
					}
				}
			}
			svc := func(i int) *dataplane.Service {
				return plainService(t, fmt.Sprint("s", i), lb.IPv4, fmt.Sprintf("10.96.0.%d:80", i))
			}
			var many []*dataplane.Service
			for i := range 40 {
				many = append(many, svc(i+1))
			}
			mustSync(t, d, dataplane.Delta{Full: true, Put: many})
			check("many", 0, true)
			mustSync(t, d, dataplane.Delta{Delete: []lb.ServiceName{many[0].Name}})
			check("one less", 0, false)
			r := d.families[lb.IPv4].runner
			restore := r.restoreProgram
			r.restoreProgram = "/bin/false"
			if err := d.Sync(t.Context(), dataplane.Delta{Put: []*dataplane.Service{many[0]}}); err == nil {
				t.Error("no error of a restore that failed")
			}
			r.restoreProgram = restore
			failures := d.families[lb.IPv4].counted.failures
			if failures == 0 {
				t.Error("no failure was counted")
			}
			mustSync(t, d, dataplane.Delta{Put: []*dataplane.Service{many[0]}})
			check("back", failures, false)
		})
	}
}

// TestLockedTables: while somebody keeps the xtables lock neither family is changed, in
// rules nor in ipsets, the error says why, and no Service is blamed. When it is let go of,
// all is as it should be.
func TestLockedTables(t *testing.T) {
	ownNetns(t)
	path := filepath.Join(t.TempDir(), "xtables.lock")
	t.Setenv("XTABLES_LOCKFILE", path)
	d, err := Open(Options{Backend: legacyBackend, MasqueradeBit: 14, LockFile: filepath.Join(t.TempDir(), "lock")})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	four, six := plainService(t, "a", lb.IPv4, "10.96.0.1:80"), plainService(t, "a", lb.IPv6, "[fd00:10:96::1]:80")
	mustSync(t, d, dataplane.Delta{Full: true, Put: []*dataplane.Service{four, six}})
	state := func() string {
		var b strings.Builder
		for _, f := range families {
			b.WriteString(d.families[f].runner.saved(t))
		}
		for _, name := range d.sets.names() {
			fmt.Fprintln(&b, name, len(d.sets.members(name)))
		}
		return b.String()
	}
	before := state()
	lock, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		d.families[f].runner.wait = 1
	}
	next := dataplane.Delta{Full: true, Put: []*dataplane.Service{
		four, plainService(t, "b", lb.IPv4, "10.96.0.2:80"), plainService(t, "b", lb.IPv6, "[fd00:10:96::2]:80"),
	}}
	names, other := failed(t, d.Sync(t.Context(), next))
	if len(names) > 0 || other == nil || strings.Count(other.Error(), errLocked.Error()) != len(families) {
		t.Errorf("failed: %v, error %v; want no Service, and %q of each family", names, other, errLocked)
	}
	if after := state(); after != before {
		t.Errorf("while locked there was\n%s\nbefore\n%s", after, before)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	mustSync(t, d, next)
	for what, want := range map[string]bool{"10.96.0.1/32": true, "10.96.0.2/32": true, "fd00:10:96::1/128": false, "fd00:10:96::2/128": true} {
		if got := strings.Contains(state(), what); got != want {
			t.Errorf("%s is served: %t, want %t", what, got, want)
		}
	}
}
