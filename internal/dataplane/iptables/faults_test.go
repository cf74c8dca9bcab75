// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// openHere opens a Dataplane in a network namespace of the test's own.
func openHere(t *testing.T, lock string) *Dataplane {
	t.Helper()
	return openBackend(t, nftBackend, lock)
}

func openBackend(t *testing.T, backend, lock string) *Dataplane {
	t.Helper()
	d, err := Open(Options{Backend: backend, MasqueradeBit: 14, LockFile: lock})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// plainService has one backend, and a cluster IP for each of at.
func plainService(t *testing.T, name string, f lb.Family, at ...string) *dataplane.Service {
	t.Helper()
	s := spec{family: f, backends: endpoints(1, 1, f)}
	for _, a := range at {
		s.frontends = append(s.frontends, lb.Frontend{
			FrontendKey: lb.FrontendKey{Addr: netip.MustParseAddrPort(a), Proto: lb.TCP}, Type: lb.ClusterIP, Masquerade: lb.MasqueradeOffCluster,
		})
	}
	svc := s.service(t)
	svc.Name.Name = name
	return svc
}

func mustSync(t *testing.T, d *Dataplane, delta dataplane.Delta) {
	t.Helper()
	if err := d.Sync(t.Context(), delta); err != nil {
		t.Fatal(err)
	}
}

// failed returns the Services that err names, and fails if it is of another kind.
func failed(t *testing.T, err error) (names []string, other error) {
	t.Helper()
	var se *dataplane.SyncError
	if !errors.As(err, &se) {
		t.Fatalf("error %v, want a SyncError", err)
	}
	for _, n := range se.Names() {
		names = append(names, n.Name)
	}
	return names, se.Other
}

// TestFrontendOfWhoFails: a Service that is refused keeps its frontend, so that another
// one that wants it is refused, too, and loses nothing that it had.
func TestFrontendOfWhoFails(t *testing.T) {
	ownNetns(t)
	d := openHere(t, filepath.Join(t.TempDir(), "lock"))
	defer d.Close()
	mustSync(t, d, dataplane.Delta{Full: true, Put: []*dataplane.Service{
		plainService(t, "x", lb.IPv4, "10.96.0.9:80"), plainService(t, "z", lb.IPv4, "10.96.0.1:80"), plainService(t, "b", lb.IPv4, "10.96.0.2:80"),
	}})
	err := d.Sync(t.Context(), dataplane.Delta{Put: []*dataplane.Service{
		plainService(t, "b", lb.IPv4, "10.96.0.1:80"), plainService(t, "z", lb.IPv4, "10.96.0.9:80"),
	}})
	if names, other := failed(t, err); !slices.Equal(names, []string{"b", "z"}) || other != nil {
		t.Fatalf("failed: %v (%v), want b and z", names, other)
	}
	mustSync(t, d, dataplane.Delta{Put: []*dataplane.Service{plainService(t, "z", lb.IPv4, "10.96.0.7:80")}})
	mustSync(t, d, dataplane.Delta{Put: []*dataplane.Service{plainService(t, "b", lb.IPv4, "10.96.0.1:80")}})
	rules := do(t, "iptables-nft", "-t", "nat", "-S", hashName("T-", "vips"))
	for addr, want := range map[string]bool{"10.96.0.1/32": true, "10.96.0.2/32": false, "10.96.0.7/32": true, "10.96.0.9/32": true} {
		if got := strings.Contains(rules, addr); got != want {
			t.Errorf("%s is served: %t, want %t:\n%s", addr, got, want, rules)
		}
	}
}

// TestUnreadableTables starts an agent that cannot read what is there: nothing is
// removed, and no Service is blamed.
func TestUnreadableTables(t *testing.T) {
	ownNetns(t)
	lock := filepath.Join(t.TempDir(), "lock")
	d := openBackend(t, legacyBackend, lock)
	svcs := []*dataplane.Service{plainService(t, "a", lb.IPv4, "10.96.0.1:80"), plainService(t, "b", lb.IPv4, "10.96.0.2:80")}
	mustSync(t, d, dataplane.Delta{Full: true, Put: svcs})
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = openBackend(t, legacyBackend, lock)
	defer d.Close()
	r := d.families[lb.IPv4].runner
	save := r.saveProgram
	r.saveProgram = "/bin/false"
	names, other := failed(t, d.Sync(t.Context(), dataplane.Delta{Full: true, Put: svcs}))
	if len(names) > 0 || other == nil || d.complete {
		t.Errorf("failed: %v (%v), complete: %t; want an error of no Service", names, other, d.complete)
	}
	if n := len(d.sets.members("LBP-VIPS-4")); n != 2 {
		t.Errorf("%d cluster IPs are left in the ipset, want 2", n)
	}
	r.saveProgram = save
	mustSync(t, d, dataplane.Delta{Full: true, Put: svcs})
}

// script writes a program that runs text and returns its path.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRestoreThatFailedAndDidIt: then it is not known what the kernel has, and the state
// from before is written anew.
func TestRestoreThatFailedAndDidIt(t *testing.T) {
	ownNetns(t)
	d := openHere(t, filepath.Join(t.TempDir(), "lock"))
	defer d.Close()
	before := plainService(t, "a", lb.IPv4, "10.96.0.1:80")
	mustSync(t, d, dataplane.Delta{Full: true, Put: []*dataplane.Service{before}})
	r := d.families[lb.IPv4].runner
	restore := r.restoreProgram
	r.restoreProgram = script(t, restore+` "$@"; exit 1`)
	after := plainService(t, "a", lb.IPv4, "10.96.0.1:80")
	after.Cluster.Backends = slices.Clone(after.Cluster.Backends)
	after.Cluster.Backends[0].Addr = netip.MustParseAddrPort("10.244.9.9:80")
	if err := d.Sync(t.Context(), dataplane.Delta{Put: []*dataplane.Service{after}}); err == nil {
		t.Fatal("no error")
	}
	r.restoreProgram = restore
	mustSync(t, d, dataplane.Delta{Put: []*dataplane.Service{before}})
	if rules := do(t, "iptables-nft-save", "-t", "nat"); strings.Contains(rules, "10.244.9.9") {
		t.Errorf("the kernel has what failed:\n%s", rules)
	}
}

// TestBrokenProgramBlamesNobody: what no restore can do is not looked for Service by
// Service.
func TestBrokenProgramBlamesNobody(t *testing.T) {
	ownNetns(t)
	d := openHere(t, filepath.Join(t.TempDir(), "lock"))
	defer d.Close()
	mustSync(t, d, dataplane.Delta{Full: true})
	count := filepath.Join(t.TempDir(), "count")
	d.families[lb.IPv4].runner.restoreProgram = script(t, "cat > /dev/null; echo run >> "+count+"; exit 1")
	var svcs []*dataplane.Service
	for i := range 200 {
		svcs = append(svcs, plainService(t, fmt.Sprint("s", i), lb.IPv4, fmt.Sprintf("10.96.0.%d:80", i+1)))
	}
	names, other := failed(t, d.Sync(t.Context(), dataplane.Delta{Put: svcs}))
	runs, err := os.ReadFile(count)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(runs), "run"); other == nil || len(names) > mostFailures || n > 4*mostFailures {
		t.Errorf("%d Services were blamed (%v) after %d attempts, want an error of all after at most %d", len(names), other, n, 4*mostFailures)
	}
}

// TestStairs has addresses of which each shares one digit more with one of them: as deep
// as a tree can be. nf_tables takes 16 chains in a row.
func TestStairs(t *testing.T) {
	ownNetns(t)
	d := openHere(t, filepath.Join(t.TempDir(), "lock"))
	defer d.Close()
	for _, f := range families {
		center := netip.MustParseAddr(map[lb.Family]string{lb.IPv4: "10.96.0.10", lb.IPv6: "fd00:10:96::a"}[f])
		at := map[string]bool{netip.AddrPortFrom(center, 80).String(): true}
		for i := range len(center.AsSlice()) * 2 {
			for step := range byte(2) {
				raw := center.AsSlice()
				raw[i/2] ^= (1 + step) << (4 * (1 - i%2))
				a, _ := netip.AddrFromSlice(raw)
				at[netip.AddrPortFrom(a, 80).String()] = true
			}
		}
		var list []string
		for a := range at {
			list = append(list, a)
		}
		slices.Sort(list)
		svc := plainService(t, "stairs", f, list...)
		svc.Cluster = testPool(t, "random", endpoints(5000, 1, f))
		svc.Terms.Affinity = 0
		sticky := plainService(t, "sticky", f, netip.AddrPortFrom(center, 81).String())
		sticky.Cluster = testPool(t, "random", endpoints(40, 1, f))
		sticky.Terms.Affinity = time.Hour
		if err := d.Sync(t.Context(), dataplane.Delta{Put: []*dataplane.Service{svc, sticky}}); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
}
