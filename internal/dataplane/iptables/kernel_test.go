// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// ownNetns gives the test's thread a network namespace of its own.
func ownNetns(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	own, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		own.Close()
		if err := netns.Set(home); err != nil {
			t.Errorf("the thread stays in the namespace: %v", err)
			return
		}
		home.Close()
		runtime.UnlockOSThread()
	})
}

// eachRunner runs f for both backends and families, each in a namespace of its own.
func eachRunner(t *testing.T, f func(t *testing.T, r *runner)) {
	for _, backend := range []string{nftBackend, legacyBackend} {
		for _, family := range families {
			t.Run(backend+" "+family.String(), func(t *testing.T) {
				ownNetns(t)
				r, err := newRunner(family, backend, runnerOptions{})
				if err != nil {
					t.Fatal(err)
				}
				f(t, r)
			})
		}
	}
}

func do(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

var savedNoise = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]`)

// saved is everything that a runner's backend has.
func (r *runner) saved(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, tab := range []string{"filter", "nat"} {
		b.WriteString(savedNoise.ReplaceAllString(do(t, r.saveProgram, "-t", tab), ""))
	}
	return b.String()
}

// skeleton is the chains that jumps lead to, with a rule or two each.
func skeleton() change {
	c := change{}
	for tab, names := range constantChains {
		b := &batch{}
		for name := range names {
			b.put = append(b.put, chain{name, []string{"-m mark --mark 0x4000/0x4000 -j RETURN", "-j RETURN"}})
		}
		c[tab] = b
	}
	return c
}

// foreign makes rules and a chain of somebody else's.
func foreign(t *testing.T, r *runner) {
	t.Helper()
	for _, args := range []string{
		"-t nat -N KUBE-SERVICES", "-t nat -A KUBE-SERVICES -p tcp --dport 80 -j RETURN",
		"-t nat -A PREROUTING -j KUBE-SERVICES", "-t nat -A POSTROUTING -o eth7 -j MASQUERADE",
		"-t filter -A INPUT -p tcp --dport 22 -j ACCEPT", "-t filter -A FORWARD -i eth7 -j DROP",
		"-t filter -P FORWARD DROP",
	} {
		do(t, r.program, strings.Fields("-w "+args)...)
	}
}

func mustRestore(t *testing.T, r *runner, c change) {
	t.Helper()
	if err := r.restore(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

// TestRestore writes, rewrites and removes chains that refer to each other.
func TestRestore(t *testing.T) {
	eachRunner(t, func(t *testing.T, r *runner) {
		foreign(t, r)
		before := r.saved(t)
		check := func(want map[string][]string) {
			t.Helper()
			got, err := r.chains(t.Context(), natTable)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("got  %v, error %v\nwant %v", got, err, want)
			}
		}
		check(map[string][]string{})
		mustRestore(t, r, change{natTable: {put: []chain{{"LBP-A", []string{"-g LBP-B", "-j RETURN"}}, {"LBP-B", nil}}}})
		check(map[string][]string{"LBP-A": {"-g LBP-B", "-j RETURN"}, "LBP-B": nil})
		mustRestore(t, r, change{natTable: {put: []chain{{"LBP-A", []string{"-j LBP-C"}}, {"LBP-C", nil}}, del: []string{"LBP-B", "LBP-NEVER"}}})
		check(map[string][]string{"LBP-A": {"-j LBP-C"}, "LBP-C": nil})
		mustRestore(t, r, change{natTable: {del: []string{"LBP-C", "LBP-A"}}})
		check(map[string][]string{})
		if after := r.saved(t); after != before {
			t.Errorf("foreign rules changed: before\n%s\nafter\n%s", before, after)
		}
	})
}

// TestRestoreFails: a table is changed wholly or not at all, and the error says by which
// line it was not.
func TestRestoreFails(t *testing.T) {
	eachRunner(t, func(t *testing.T, r *runner) {
		mustRestore(t, r, change{natTable: {put: []chain{{"LBP-A", []string{"-j RETURN"}}}}})
		before := r.saved(t)
		for name, c := range map[string]change{
			"no such chain":  {natTable: {put: []chain{{"LBP-A", nil}, {"LBP-D", []string{"-j LBP-NONE"}}}}},
			"no such set":    {natTable: {put: []chain{{"LBP-A", nil}, {"LBP-D", []string{"-m set --match-set LBP-NONE dst -j RETURN"}}}}},
			"still used":     {natTable: {put: []chain{{"LBP-D", []string{"-j LBP-E"}}}, del: []string{"LBP-A", "LBP-E"}}},
			"no rule at all": {natTable: {put: []chain{{"LBP-A", []string{"--no-such-option"}}}}},
		} {
			err := r.restore(t.Context(), c)
			if err == nil || !strings.Contains(err.Error(), "line") || errors.Is(err, errLocked) {
				t.Errorf("%s: got error %v", name, err)
			}
			t.Log(name, ":", err)
			if after := r.saved(t); after != before {
				t.Errorf("%s: half applied: before\n%s\nafter\n%s", name, before, after)
			}
		}
		err := r.restore(t.Context(), change{
			filterTable: {put: []chain{{"LBP-F", []string{"-j RETURN"}}}},
			natTable:    {put: []chain{{"LBP-A", []string{"-j LBP-NONE"}}}},
		})
		if err == nil {
			t.Fatal("a bad table nat is no error")
		}
		filter, errFilter := r.chains(t.Context(), filterTable)
		nat, errNAT := r.chains(t.Context(), natTable)
		if err := errors.Join(errFilter, errNAT); err != nil {
			t.Fatal(err)
		}
		if len(filter["LBP-F"]) != 1 || !slices.Equal(nat["LBP-A"], []string{"-j RETURN"}) {
			t.Errorf("tables are not independent: filter %v, nat %v", filter, nat)
		}
	})
}

// TestRestoreLocked: a lock that stays held is an error, and nothing is applied.
func TestRestoreLocked(t *testing.T) {
	ownNetns(t)
	path := filepath.Join(t.TempDir(), "xtables.lock")
	t.Setenv("XTABLES_LOCKFILE", path)
	r, err := newRunner(lb.IPv4, legacyBackend, runnerOptions{wait: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	before := r.saved(t)
	c := change{natTable: {put: []chain{{"LBP-A", nil}}}}
	if err := r.restore(t.Context(), c); !errors.Is(err, errLocked) {
		t.Errorf("got %v, want %v", err, errLocked)
	}
	if after := r.saved(t); after != before {
		t.Errorf("applied while locked:\n%s", after)
	}
	// It waits until the lock is let go.
	errs := make(chan error, 1)
	r.wait = 60
	go func() { errs <- unix.Flock(int(f.Fd()), unix.LOCK_UN) }()
	mustRestore(t, r, c)
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
}

// TestRestoreKilled: a program that is killed, or gets half of its input because the
// agent died, changes nothing.
func TestRestoreKilled(t *testing.T) {
	eachRunner(t, func(t *testing.T, r *runner) {
		before := r.saved(t)
		ctx, cancel := context.WithCancel(t.Context())
		var rules []string
		for i := range 20000 {
			rules = append(rules, fmt.Sprintf("-p tcp -m tcp --dport %d -j RETURN", 1+i))
		}
		c := change{natTable: {put: []chain{{"LBP-A", rules}}}}
		err := r.feed(ctx, func(w io.Writer) error {
			var text strings.Builder
			if err := c.render(&text, false); err != nil {
				return err
			}
			if _, err := io.WriteString(w, text.String()[:text.Len()/2]); err != nil {
				return err
			}
			cancel() // it has read most of that, and waits for more
			_, err := io.WriteString(w, text.String()[text.Len()/2:text.Len()-len("COMMIT\n")])
			return err
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("killed: got %v, want %v", err, context.Canceled)
		}
		err = r.feed(t.Context(), func(w io.Writer) error {
			_, err := io.WriteString(w, "*nat\n:LBP-A - [0:0]\n-A LBP-A -j RET")
			return errors.Join(err, errors.New("the agent died"))
		})
		if err == nil {
			t.Error("half of the input is no error")
		}
		if after := r.saved(t); after != before {
			t.Errorf("half applied:\n%s", after)
		}
	})
}

// TestSupports finds out about rules and leaves nothing.
func TestSupports(t *testing.T) {
	eachRunner(t, func(t *testing.T, r *runner) {
		before := r.saved(t)
		for rule, want := range map[string]bool{
			"-j MASQUERADE --random-fully":                           true,
			anyBPF + " -j RETURN":                                    true,
			"-m bpf --bytecode \"1,6 0 0\" -j RETURN":                false,
			"-m nosuchmatch -j RETURN":                               false,
			"-m statistic --mode nth --every 2 --packet 0 -j RETURN": true,
		} {
			if err := r.supports(t.Context(), natTable, rule); (err == nil) != want {
				t.Errorf("%s: got %v", rule, err)
			}
		}
		if after := r.saved(t); after != before {
			t.Errorf("before\n%s\nafter\n%s", before, after)
		}
	})
}

// TestJumps are made the first rules, once, and removed without a trace.
func TestJumps(t *testing.T) {
	eachRunner(t, func(t *testing.T, r *runner) {
		foreign(t, r)
		before := r.saved(t)
		mustRestore(t, r, skeleton())
		if missing, err := r.jumps(t.Context()); err != nil || len(missing) != len(jumps) {
			t.Errorf("got %v, error %v, want all", missing, err)
		}
		ensure := func(want int) {
			t.Helper()
			if added, err := r.ensureJumps(t.Context()); err != nil || added != want {
				t.Errorf("added %d, error %v, want %d", added, err, want)
			}
			if missing, err := r.jumps(t.Context()); err != nil || len(missing) > 0 {
				t.Errorf("missing %v, error %v", missing, err)
			}
		}
		list := func(want ...string) {
			t.Helper()
			got := strings.Split(strings.TrimSpace(do(t, r.program, "-w", "-t", "filter", "-S", "INPUT")), "\n")[1:]
			if !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		}
		first, second, accept := "-A INPUT -j LBP-INPUT", "-A INPUT -m conntrack --ctstate NEW -j LBP-FILTER", "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"
		ensure(len(jumps))
		list(first, second, accept)
		full := r.saved(t)
		ensure(0)
		if again := r.saved(t); again != full {
			t.Errorf("not idempotent: before\n%s\nafter\n%s", full, again)
		}
		admin := "-A INPUT -i eth9 -j REJECT"
		reject := strings.Fields("-w -t filter -I INPUT -i eth9 -j REJECT")
		do(t, r.program, reject...)
		ensure(0) // who put that before ours meant it
		do(t, r.program, "-w", "-t", "filter", "-D", "INPUT", "-m", "conntrack", "--ctstate", "NEW", "-j", "LBP-FILTER")
		do(t, r.program, "-w", "-t", "filter", "-A", "INPUT", "-j", "LBP-INPUT") // twice now
		ensure(1)
		if out := do(t, r.program, "-w", "-t", "filter", "-S", "INPUT"); strings.Count(out, "LBP-") != 2 ||
			strings.Index(out, first) > strings.Index(out, second) || strings.Index(out, second) > strings.Index(out, "eth9") {
			t.Errorf("not in order, or with %q not behind:\n%s", admin, out)
		}
		reject[3] = "-D"
		do(t, r.program, reject...)
		list(first, second, accept)
		if err := r.removeJumps(t.Context()); err != nil {
			t.Error(err)
		}
		for _, tab := range tables {
			if _, err := r.removeAll(t.Context(), tab); err != nil {
				t.Error(err)
			}
		}
		if after := r.saved(t); after != before {
			t.Errorf("foreign rules changed: before\n%s\nafter\n%s", before, after)
		}
	})
}
