// SPDX-License-Identifier: Apache-2.0

package fake_test

import (
	"errors"
	"net/netip"
	"reflect"
	"testing"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/fake"
	"github.com/lbproxy/lbproxy/internal/lb"
)

var (
	svcName = lb.ServiceName{Object: lb.Object{Namespace: "ns", Name: "a"}, Proto: lb.TCP, Family: lb.IPv4}
	pod     = netip.MustParseAddr("10.244.1.2")
)

func service(t *testing.T, backends []string, vips ...string) *dataplane.Service {
	t.Helper()
	svc := &dataplane.Service{Name: svcName}
	for _, vip := range vips {
		key := lb.FrontendKey{Addr: netip.MustParseAddrPort(vip), Proto: lb.TCP}
		svc.Frontends = append(svc.Frontends, lb.Frontend{FrontendKey: key, Type: lb.ClusterIP})
	}
	var ms []algo.Member
	for _, be := range backends {
		svc.Cluster.Backends = append(svc.Cluster.Backends, lb.Backend{Addr: netip.MustParseAddrPort(be), Weight: 1})
		ms = append(ms, algo.Member{Weight: 1})
	}
	table, err := algo.Build("round-robin", ms)
	if err != nil {
		t.Fatal(err)
	}
	svc.Cluster.Table = table
	return svc
}

// traces returns what each address of the test answers.
func traces(d *fake.Dataplane) map[string]fake.Verdict {
	out := map[string]fake.Verdict{}
	for _, vip := range []string{"10.96.0.1:80", "10.96.0.2:80", "10.96.0.3:80"} {
		out[vip] = d.Trace(fake.Flow{Source: pod, To: netip.MustParseAddrPort(vip), Proto: lb.TCP})
	}
	return out
}

// TestFailureAtAnyWrite breaks an update at each of its writes in turn: the
// Service must be what it was, and the next attempt must succeed.
func TestFailureAtAnyWrite(t *testing.T) {
	fault := errors.New("broken")
	for at := 0; ; at++ {
		var d *fake.Dataplane
		armed, left := false, 0
		d = fake.New(fake.Options{OnWrite: func(fake.Write) {
			if left--; armed && left == 0 {
				d.FailService(svcName, fault)
			}
		}})
		before := service(t, []string{"10.244.1.10:80", "10.244.1.11:80"}, "10.96.0.1:80", "10.96.0.2:80")
		after := service(t, []string{"10.244.1.10:80", "10.244.1.12:80"}, "10.96.0.1:80", "10.96.0.3:80")
		put := func(svc *dataplane.Service) error {
			return d.Sync(t.Context(), dataplane.Delta{Put: []*dataplane.Service{svc}})
		}
		if err := put(before); err != nil {
			t.Fatal(err)
		}
		want := traces(d)
		if armed, left = true, at; at == 0 {
			d.FailService(svcName, fault)
		}
		if err := put(after); err == nil {
			if at == 0 {
				t.Fatal("nothing failed")
			}
			t.Logf("an update of %d writes", at)
			return
		} else if !errors.Is(err, fault) {
			t.Fatalf("write %d: error %v, want %v", at, err, fault)
		}
		if got := traces(d); !reflect.DeepEqual(got, want) {
			t.Errorf("after a failure at write %d:\n got %+v\nwant %+v", at, got, want)
		}
		if got := d.Services()[svcName]; got != before {
			t.Errorf("after a failure at write %d: the service is %+v", at, got)
		}
		armed = false
		d.FailService(svcName, nil)
		if err := put(after); err != nil {
			t.Errorf("after a failure at write %d: %v", at, err)
		}
		if v := traces(d)["10.96.0.3:80"]; v.Action != fake.Forward || v.Candidates[1] != after.Cluster.Backends[1] {
			t.Errorf("after the retry of write %d: %+v", at, v)
		}
	}
}

// TestHalfAnUpdateIsNeverSeen looks up each frontend after each write: it answers
// wholly as before or wholly as after.
func TestHalfAnUpdateIsNeverSeen(t *testing.T) {
	before := service(t, []string{"10.244.1.10:80", "10.244.1.11:80"}, "10.96.0.1:80")
	after := service(t, []string{"10.244.1.12:80", "10.244.1.13:80", "10.244.1.14:80"}, "10.96.0.1:80")
	var d *fake.Dataplane
	looks, kinds, begun := 0, []string{}, false
	d = fake.New(fake.Options{OnWrite: func(w fake.Write) {
		if !begun {
			return
		}
		kinds = append(kinds, w.Kind)
		looks++
		got := traces(d)["10.96.0.1:80"].Candidates
		if !reflect.DeepEqual(got, before.Cluster.Backends) && !reflect.DeepEqual(got, after.Cluster.Backends) {
			t.Errorf("after %s %s: %v", w.Kind, w.Key, got)
		}
	}})
	for _, svc := range []*dataplane.Service{before, after} {
		if err := d.Sync(t.Context(), dataplane.Delta{Put: []*dataplane.Service{svc}}); err != nil {
			t.Fatal(err)
		}
		begun = true
	}
	want := []string{fake.WriteBackend, fake.WriteBackend, fake.WriteBackend, fake.WriteTable, fake.WriteFrontend}
	if !reflect.DeepEqual(kinds, want) {
		t.Errorf("writes %v, want %v", kinds, want)
	}
}

func TestFailEvery(t *testing.T) {
	d := fake.New(fake.Options{FailEvery: 4})
	svc := service(t, []string{"10.244.1.10:80"}, "10.96.0.1:80") // backend, table, table, frontend
	put := dataplane.Delta{Put: []*dataplane.Service{svc}}
	if err := d.Sync(t.Context(), put); !errors.Is(err, fake.ErrInjected) {
		t.Errorf("first sync: error %v, want the injected one", err)
	}
	d.SetFailEvery(0)
	if err := d.Sync(t.Context(), put); err != nil {
		t.Errorf("second sync: %v", err)
	}
}

func TestConflictIsAnError(t *testing.T) {
	d := fake.New(fake.Options{})
	a, b := service(t, nil, "10.96.0.1:80"), service(t, nil, "10.96.0.1:80")
	b.Name.Name = "b"
	err := d.Sync(t.Context(), dataplane.Delta{Put: []*dataplane.Service{a, b}})
	var se *dataplane.SyncError
	if !errors.As(err, &se) || len(se.Failed) != 1 || se.Failed[b.Name] == nil {
		t.Errorf("error %v, want one for %s", err, b.Name)
	}
}

func TestStats(t *testing.T) {
	d := fake.New(fake.Options{})
	svc := service(t, []string{"10.244.1.10:80", "10.244.1.11:80"}, "10.96.0.1:80")
	empty := service(t, nil, "10.96.0.2:80")
	empty.Name.Name = "b"
	if err := d.Sync(t.Context(), dataplane.Delta{Put: []*dataplane.Service{svc, empty}}); err != nil {
		t.Fatal(err)
	}
	for _, vip := range []string{"10.96.0.1:80", "10.96.0.1:80", "10.96.0.1:80", "10.96.0.2:80"} {
		d.Dial(fake.Flow{Source: pod, To: netip.MustParseAddrPort(vip), Proto: lb.TCP})
	}
	got, err := d.Stats()
	if err != nil {
		t.Fatal(err)
	}
	want := dataplane.Stats{
		Backends: []dataplane.BackendStats{
			{Service: svcName, Backend: svc.Cluster.Backends[0].Addr, Counted: true, Opened: 2, Closed: 2, Answered: 2},
			{Service: svcName, Backend: svc.Cluster.Backends[1].Addr, Counted: true, Opened: 1, Closed: 1, Answered: 1},
		},
		Maps:  []dataplane.MapUsage{{Name: "backends", Used: 2}, {Name: "frontends", Used: 2}},
		Drops: map[string]uint64{"reject": 1},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("stats\n got %+v\nwant %+v", got, want)
	}
}
