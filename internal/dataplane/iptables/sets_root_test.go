// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

func mustOpenSets(t *testing.T) *sets {
	t.Helper()
	s, err := openSets()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

// examples are members of every type, in both families.
func examples() map[setSpec][]member {
	got := map[setSpec][]member{}
	for f, a := range map[lb.Family][3]string{
		lb.IPv4: {"10.96.0.1", "128.0.0.0/1", "10.0.0.0/8"},
		lb.IPv6: {"fd00:10:96::1", "8000::/1", "fd00::/16"},
	} {
		host, half, wide := pfx(a[0]), pfx(a[1]), pfx(a[2])
		for typ, ms := range map[setType][]member{
			hashIP:        {{addr: host}},
			hashIPPort:    {{addr: host, proto: lb.TCP, port: 80}, {addr: host, proto: lb.UDP, port: 80}, {addr: host, proto: lb.SCTP, port: 65535}},
			hashNetPort:   {{addr: half, proto: lb.TCP, port: 30080}, {addr: host, proto: lb.SCTP, port: 1}, {addr: wide, proto: lb.UDP, port: 53}},
			hashIPPortNet: {{addr: host, proto: lb.TCP, port: 443, from: half}, {addr: host, proto: lb.UDP, port: 53, from: wide}, {addr: host, proto: lb.SCTP, port: 9, from: host}},
		} {
			name := fmt.Sprintf("LBP-%s-%d", strings.ReplaceAll(string(typ[5:]), ",", "-"), f)
			got[setSpec{name, typ, f, 0}] = ms
		}
	}
	return got
}

// TestSets: what one process put in, the next one finds, and what is there is no write.
func TestSets(t *testing.T) {
	ownNetns(t)
	s := mustOpenSets(t)
	writes := uint64(0)
	for spec, ms := range examples() {
		for range 2 {
			if err := s.create(spec); err != nil {
				t.Fatal(err)
			}
			for _, m := range ms {
				if err := s.add(spec.name, m); err != nil {
					t.Fatal(err)
				}
			}
		}
		writes += 1 + uint64(len(ms))
	}
	if got := s.writes(); got != writes {
		t.Errorf("got %d writes, want %d", got, writes)
	}
	next := mustOpenSets(t)
	if !slices.Equal(next.names(), s.names()) || len(s.names()) != 8 {
		t.Errorf("got %v, want %v", next.names(), s.names())
	}
	for spec, ms := range examples() {
		want := map[member]bool{}
		for _, m := range ms {
			want[m] = true
		}
		if got := next.members(spec.name); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, want %v", spec.name, got, want)
		}
		if err := next.create(spec); err != nil || next.writes() != 0 {
			t.Errorf("%s: one that is there: %d writes, error %v", spec.name, next.writes(), err)
		}
		if err := errors.Join(s.del(spec.name, ms[0]), s.del(spec.name, ms[0])); err != nil {
			t.Error(err)
		}
	}
	differences, err := next.refresh()
	if err != nil || len(differences) != 8 || !strings.Contains(differences[0], " lacks ") {
		t.Errorf("got %q, error %v, want one member lacking in each", differences, err)
	}
	if differences, err = next.refresh(); err != nil || len(differences) > 0 {
		t.Errorf("a second time: got %q, error %v", differences, err)
	}
	for _, name := range s.names() {
		if err := errors.Join(s.destroy(name), s.destroy(name)); err != nil {
			t.Error(err)
		}
	}
	if differences, err = next.refresh(); err != nil || len(differences) != 8 || !strings.Contains(differences[0], " is gone") {
		t.Errorf("got %q, error %v, want all gone", differences, err)
	}
}

// TestSetsOfOthers are neither seen nor touched.
func TestSetsOfOthers(t *testing.T) {
	ownNetns(t)
	s := mustOpenSets(t)
	other := setSpec{"KUBE-CLUSTER-IP", hashIP, lb.IPv4, 0}
	if err := s.kernel.create(other, constantSize); err != nil {
		t.Fatal(err)
	}
	if differences, err := s.refresh(); err != nil || len(differences)+len(s.names()) > 0 {
		t.Errorf("seen: %q, error %v", differences, err)
	}
	if err := s.create(other); err == nil {
		t.Error("it can be created")
	}
	if err := errors.Join(s.destroy(other.name), s.kernel.destroy(other.name)); err != nil {
		t.Errorf("it was touched: %v", err)
	}
}

// TestSetFull: the error tells the set and the member, and that there is no room.
func TestSetFull(t *testing.T) {
	ownNetns(t)
	s := mustOpenSets(t)
	spec := setSpec{"LBP-A4-full", hashIP, lb.IPv4, 3600}
	if err := s.create(spec); err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr("10.0.0.0")
	for range 2 * spec.maxMembers() {
		err := s.add(spec.name, member{addr: netip.PrefixFrom(a, 32)})
		if err == nil {
			a = a.Next()
			continue
		}
		if !errors.Is(err, dataplane.ErrFull) || !strings.Contains(err.Error(), spec.name) || !strings.Contains(err.Error(), a.String()) {
			t.Errorf("got %v, want %v", err, dataplane.ErrFull)
		}
		return
	}
	t.Errorf("%s has no limit", spec.name)
}

// TestSetTimeout: a set whose timeout changes keeps its members, and the rules that
// refer to it do not notice; one that a rule refers to cannot get another type.
func TestSetTimeout(t *testing.T) {
	eachRunner(t, func(t *testing.T, r *runner) {
		s := mustOpenSets(t)
		spec := setSpec{"LBP-A-x", hashIP, r.family, 600}
		host := pfx(map[lb.Family]string{lb.IPv4: "10.0.0.1", lb.IPv6: "fd00::1"}[r.family])
		if err := errors.Join(s.create(spec), s.add(spec.name, member{addr: host})); err != nil {
			t.Fatal(err)
		}
		mustRestore(t, r, change{natTable: {put: []chain{{"LBP-A", []string{
			"-m set --match-set LBP-A-x src -j SET --add-set LBP-A-x src --exist --timeout 600",
			"-j SET --del-set LBP-A-x src",
		}}}}})
		spec.timeout = 60
		if err := s.create(spec); err != nil {
			t.Fatal(err)
		}
		n := 0
		err := s.kernel.list(spec.name, func(m member, timeout uint32) {
			if n++; m.addr != host || timeout == 0 || timeout > 60 {
				t.Errorf("got %s for %d s, want %s for at most 60", m, timeout, host)
			}
		})
		if err != nil || n != 1 {
			t.Errorf("got %d members, error %v", n, err)
		}
		if next := mustOpenSets(t); next.known[spec.name] == nil || next.known[spec.name].spec != spec || len(next.names()) != 1 {
			t.Errorf("got %v, want %v alone", next.names(), spec)
		}
		if err := s.create(setSpec{spec.name, hashIPPort, r.family, 0}); !errors.Is(err, errSetBusy) {
			t.Errorf("another type: got %v, want %v", err, errSetBusy)
		}
		if err := s.destroy(spec.name); !errors.Is(err, errSetBusy) {
			t.Errorf("destroy: got %v, want %v", err, errSetBusy)
		}
		mustRestore(t, r, change{natTable: {del: []string{"LBP-A"}}})
		if err := s.destroy(spec.name); err != nil {
			t.Error(err)
		}
	})
}

// TestSetsGrow: a crowded set becomes larger and keeps its members; others are left.
func TestSetsGrow(t *testing.T) {
	ownNetns(t)
	s := mustOpenSets(t)
	small, crowd := setSpec{"LBP-A4-small", hashIP, lb.IPv4, 600}, setSpec{"LBP-A4-crowd", hashIP, lb.IPv4, 600}
	for _, spec := range []setSpec{small, crowd} {
		if err := s.kernel.create(spec, 64); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.refresh(); err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr("10.0.0.0")
	for range 64*crowded + 1 {
		if err := s.add(crowd.name, member{addr: netip.PrefixFrom(a, 32)}); err != nil {
			t.Fatal(err)
		}
		a = a.Next()
	}
	for i, want := range []string{"[LBP-A4-crowd]", "[]"} {
		if grown, err := s.grow(); err != nil || fmt.Sprint(grown) != want {
			t.Errorf("call %d: got %v, error %v, want %s", i, grown, err, want)
		}
	}
	heads, err := s.kernel.heads()
	if err != nil || len(heads) != 2 {
		t.Fatalf("got %v, error %v", heads, err)
	}
	for _, h := range heads {
		if h.name == crowd.name && (h.size < 64*growth || h.members != 64*crowded+1) {
			t.Errorf("got %+v", h)
		}
	}
}

// TestManyMembers logs how long it takes.
func TestManyMembers(t *testing.T) {
	ownNetns(t)
	s := mustOpenSets(t)
	spec := setSpec{"LBP-VIPS-4", hashIPPort, lb.IPv4, 0}
	if err := s.create(spec); err != nil {
		t.Fatal(err)
	}
	a, start := netip.MustParseAddr("10.96.0.0"), time.Now()
	for range 10000 {
		if err := s.add(spec.name, member{addr: netip.PrefixFrom(a, 32), proto: lb.TCP, port: 80}); err != nil {
			t.Fatal(err)
		}
		a = a.Next()
	}
	added := time.Since(start)
	start = time.Now()
	if differences, err := s.refresh(); err != nil || len(differences) > 0 || len(s.members(spec.name)) != 10000 {
		t.Errorf("got %d members, differences %q, error %v", len(s.members(spec.name)), differences, err)
	}
	t.Logf("10,000 members were added in %v and read in %v", added, time.Since(start))
}
