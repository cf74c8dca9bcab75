// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// watchRig is a watcher of one family with a clock of its own.
type watchRig struct {
	*watcher
	t     *testing.T
	r     *runner
	clock time.Time
}

func newWatchRig(t *testing.T, r *runner) *watchRig {
	t.Helper()
	mustRestore(t, r, skeleton())
	if _, err := r.ensureJumps(t.Context()); err != nil {
		t.Fatal(err)
	}
	w, err := newWatcher([]*runner{r})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
	rig := &watchRig{watcher: w, t: t, r: r, clock: time.Unix(1e9, 0)}
	w.now = func() time.Time { return rig.clock }
	return rig
}

// check lets the time of a look pass and wants what is found to contain a text; empty:
// nothing is damaged.
func (w *watchRig) check(want string) {
	w.t.Helper()
	w.clock = w.clock.Add(lookPeriod)
	damaged, err := w.watcher.check(w.t.Context())
	why := fmt.Sprint(damaged)
	if err != nil || len(damaged) > 0 != (want != "") || !strings.Contains(why, want) {
		w.t.Errorf("got %q, error %v, want %q", why, err, want)
	}
}

// quiet wants that no look is due.
func (w *watchRig) quiet() {
	w.t.Helper()
	w.check("")
	next := w.families[0].next
	w.check("")
	if w.families[0].next != next {
		w.t.Error("a look was made though nothing changed")
	}
}

// TestWatch: what others do to jumps and constant chains is found, and nothing else.
func TestWatch(t *testing.T) {
	eachRunner(t, func(t *testing.T, r *runner) {
		w := newWatchRig(t, r)
		repair := func() {
			t.Helper()
			mustRestore(t, r, skeleton())
			w.wrote(r.family)
			if _, err := r.ensureJumps(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.wrote(r.family)
			w.check("")
			w.quiet()
		}
		repair()
		foreign(t, r)
		w.check("")
		w.quiet()
		for args, want := range map[string]string{
			"-t nat -D PREROUTING -j LBP-SERVICES": "the jump from PREROUTING to LBP-SERVICES in table nat is gone",
			"-t filter -F FORWARD":                 "the jump from FORWARD to LBP-FORWARD in table filter is gone",
			"-t nat -F LBP-MASQ":                   "chain LBP-MASQ of table nat has 0 rules: want 2",
			"-t filter -A LBP-FILTER -j ACCEPT":    "chain LBP-FILTER of table filter has 3 rules: want 2",
			"-t nat -F":                            "chain LBP-SERVICES of table nat has 0 rules",
			"-t filter -I FORWARD -j RETURN":       "",
			"-t nat -A KUBE-SERVICES -j RETURN":    "",
		} {
			do(t, r.program, strings.Fields("-w "+args)...)
			w.check(want)
			w.check(want) // until it is repaired
			repair()
		}
		if r.kind == nftBackend {
			do(t, "nft", "flush", "ruleset")
			w.check("is gone")
			repair()
		}
	})
}

// TestWatchOwnWrites: what we write is no reason to look, in either family.
func TestWatchOwnWrites(t *testing.T) {
	eachRunner(t, func(t *testing.T, r *runner) {
		w := newWatchRig(t, r)
		w.check("")
		for range 3 {
			next := w.families[0].next
			mustRestore(t, r, change{
				natTable:    {put: []chain{{"LBP-C-1", []string{"-j RETURN"}}, {"LBP-MASQ", []string{"-j RETURN"}}}, del: []string{"LBP-C-2"}},
				filterTable: {put: []chain{{"LBP-C-1", []string{"-j RETURN"}}}},
			})
			w.wrote(r.family)
			w.check("")
			if w.families[0].next != next {
				t.Error("a look was made after a change of our own")
			}
			// A change of somebody else's is not hidden by one of ours.
			do(t, r.program, strings.Fields("-w -t nat -D OUTPUT -j LBP-SERVICES")...)
			mustRestore(t, r, change{natTable: {put: []chain{{"LBP-C-2", []string{"-j RETURN"}}}}})
			w.wrote(r.family)
			w.check("from OUTPUT to LBP-SERVICES")
			if _, err := r.ensureJumps(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.check("")
			w.quiet()
		}
	})
}

// TestWatchRate: frequent changes of others cost no more than a look in its time.
func TestWatchRate(t *testing.T) {
	ownNetns(t)
	r, err := newRunner(lb.IPv4, nftBackend, runnerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w := newWatchRig(t, r)
	w.check("")
	do(t, r.program, "-t", "nat", "-F", "PREROUTING")
	w.check("PREROUTING")
	for range 5 {
		if damaged, err := w.watcher.check(t.Context()); len(damaged) > 0 || err != nil {
			t.Errorf("looked before its time: %v, error %v", damaged, err)
		}
	}
	w.check("PREROUTING")
}

// TestAdoptedCounts: chains of an earlier agent are watched as they were found.
func TestAdoptedCounts(t *testing.T) {
	eachRunner(t, func(t *testing.T, r *runner) {
		w := newWatchRig(t, r)
		r.counts = map[table]*tally{natTable: newTally(), filterTable: newTally()}
		w.check("")
		do(t, r.program, "-w", "-t", "nat", "-F", "LBP-OFF")
		w.check("chain LBP-OFF of table nat has 0 rules: want 2")
	})
}

// TestAutoBackend: kubelet's chain decides, and looking creates nothing.
func TestAutoBackend(t *testing.T) {
	for _, backend := range []string{nftBackend, legacyBackend} {
		t.Run(backend, func(t *testing.T) {
			ownNetns(t)
			if _, err := chooseBackend("auto"); err != nil {
				t.Fatal(err)
			}
			if out := do(t, "nft", "list", "ruleset"); out != "" {
				t.Errorf("looking created something:\n%s", out)
			}
			if haveTables(lb.IPv4, legacyBackend)(natTable) {
				t.Error("looking loaded table nat of the legacy backend")
			}
			do(t, "ip6tables-"+backend, "-w", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
			c, err := chooseBackend("auto")
			if err != nil || c.backend != backend || !strings.Contains(c.why, "KUBE-IPTABLES-HINT") {
				t.Errorf("got %v, error %v, want %s", c, err, backend)
			}
			do(t, "ip6tables-"+backend, "-w", "-t", "mangle", "-X", "KUBE-IPTABLES-HINT")
			do(t, "iptables-"+backend, "-w", "-t", "nat", "-A", "OUTPUT", "-j", "RETURN")
			if c, err := chooseBackend("auto"); err != nil || c.backend != backend {
				t.Errorf("got %v, error %v, want %s", c, err, backend)
			}
		})
	}
}

// TestCleanup removes everything of lbproxy's in both backends and families, and
// nothing of others.
func TestCleanup(t *testing.T) {
	ownNetns(t)
	opts := Options{LockFile: filepath.Join(t.TempDir(), "lock")}
	if removed, err := Cleanup(opts); err != nil || len(removed) > 0 {
		t.Errorf("nothing is there: got %q, error %v", removed, err)
	}
	if out := do(t, "nft", "list", "ruleset"); out != "" || haveTables(lb.IPv4, legacyBackend)(natTable) {
		t.Errorf("cleanup created something:\n%s", out)
	}
	var runners []*runner
	var before []string
	for _, backend := range []string{nftBackend, legacyBackend} {
		for _, f := range families {
			r, err := newRunner(f, backend, runnerOptions{})
			if err != nil {
				t.Fatal(err)
			}
			foreign(t, r)
			runners, before = append(runners, r), append(before, r.saved(t))
			c := skeleton()
			c[natTable].put = append(c[natTable].put, chain{"LBP-T-1", []string{"-m set --match-set LBP-X" + f.String() + " src -j LBP-T-2"}}, chain{"LBP-T-2", nil})
			s := mustOpenSets(t)
			if err := s.create(setSpec{"LBP-X" + f.String(), hashIP, f, 0}); err != nil {
				t.Fatal(err)
			}
			mustRestore(t, r, c)
			if _, err := r.ensureJumps(t.Context()); err != nil {
				t.Fatal(err)
			}
			do(t, r.program, "-w", "-t", "nat", "-A", "INPUT", "-j", "LBP-T-1") // of another version, perhaps
		}
	}
	lock, err := Lock(opts)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Cleanup(opts); err == nil || !strings.Contains(err.Error(), ErrRunning.Error()) {
		t.Errorf("while an agent runs: got %v", err)
	}
	lock.Close()
	removed, err := Cleanup(opts)
	if err != nil || len(removed) != 9 || !slices.Contains(removed, "2 ipsets") {
		t.Errorf("got %q, error %v", removed, err)
	}
	for i, r := range runners {
		if after := r.saved(t); after != before[i] {
			t.Errorf("%s %s: foreign rules changed: before\n%s\nafter\n%s", r.family, r.kind, before[i], after)
		}
	}
	if s := mustOpenSets(t); len(s.names()) > 0 {
		t.Errorf("ipsets are left: %v", s.names())
	}
}

// TestCheck: this kernel can have the dataplane; kube-proxy and the other backend are
// named; nothing is left.
func TestCheck(t *testing.T) {
	ownNetns(t)
	find := func(fs []Finding, name string) Finding {
		for _, f := range fs {
			if f.Name == name {
				return f
			}
		}
		return Finding{}
	}
	fs := Check(Options{Backend: "nft"})
	for _, f := range fs {
		if f.Level == Fail {
			t.Errorf("%+v", f)
		}
	}
	if f := find(fs, "kube-proxy"); f.Level != OK {
		t.Errorf("got %+v", f)
	}
	do(t, "iptables-legacy", "-w", "-t", "nat", "-N", "KUBE-SERVICES")
	do(t, "iptables-legacy", "-w", "-t", "nat", "-A", "KUBE-SERVICES", "-j", "RETURN")
	fs = Check(Options{Backend: "nft"})
	for _, name := range []string{"kube-proxy", "other backend"} {
		if f := find(fs, name); f.Level != Warn {
			t.Errorf("%s: got %+v", name, f)
		}
	}
	if out := do(t, "iptables-nft-save"); strings.Contains(out, prefix) {
		t.Errorf("something is left:\n%s", out)
	}
	if s := mustOpenSets(t); len(s.names()) > 0 {
		t.Errorf("ipsets are left: %v", s.names())
	}
	t.Setenv("PATH", t.TempDir())
	if f := find(Check(Options{}), "backend"); f.Level != Fail {
		t.Errorf("nothing installed: got %+v", f)
	}
}

// TestBusyMachine: a look that took long because the machine is busy puts the next one off
// no longer than one that was quick; one that cost much does, unless half of a table is gone.
func TestBusyMachine(t *testing.T) {
	eachRunner(t, func(t *testing.T, r *runner) {
		w := newWatchRig(t, r)
		mustRestore(t, r, change{natTable: {put: []chain{{"LBP-A", slices.Repeat([]string{"-j RETURN"}, 100)}}}})
		w.wrote(r.family)
		w.check("")
		spent := time.Duration(0)
		w.spent = func() time.Duration { return spent }
		w.now = func() time.Time { w.clock = w.clock.Add(5 * time.Second); return w.clock }
		change := func() { do(t, r.program, "-w", "-t", "nat", "-A", "INPUT", "-j", "ACCEPT") }
		change()
		w.check("")
		w.now = func() time.Time { return w.clock }
		do(t, r.program, "-w", "-t", "nat", "-F", servicesChain)
		w.check(servicesChain)

		mustRestore(t, r, skeleton())
		w.wrote(r.family)
		w.spent = func() time.Duration { spent += time.Second; return spent }
		w.clock = w.clock.Add(time.Minute)
		change()
		w.check("")
		do(t, r.program, "-w", "-t", "nat", "-F", servicesChain)
		w.check("") // not yet
		do(t, r.program, "-w", "-t", "nat", "-F")
		if r.kind == nftBackend {
			w.clock = w.clock.Add(lookShare * time.Second)
		}
		w.check(servicesChain)
	})
}
