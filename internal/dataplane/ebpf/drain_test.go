// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"context"
	stdmaps "maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// memory is a Tracker that remembers.
type memory struct {
	known, reserved map[dataplane.Flow]bool
	before          map[dataplane.Flow]bool // what it knew by itself
	told            int
	each            func(n int) // called at the n-th Track
}

// Track implements Tracker.
func (m *memory) Track(flows []dataplane.Flow) (made []dataplane.Flow, err error) {
	if m.told++; m.known == nil {
		m.known = map[dataplane.Flow]bool{}
	}
	m.each(m.told)
	for _, f := range flows {
		if !m.known[f] && !m.before[f] {
			made = append(made, f)
		}
		m.known[f] = true
	}
	return made, nil
}

// Reserve implements Tracker.
func (m *memory) Reserve(flows []dataplane.Flow) error {
	m.reserved = map[dataplane.Flow]bool{}
	for _, f := range flows {
		m.reserved[f] = true
	}
	return nil
}

// Untrack implements Tracker.
func (m *memory) Untrack(flows []dataplane.Flow) error {
	for _, f := range flows {
		delete(m.known, f)
	}
	return nil
}

// drain opens what is there, as Drain does, and calls f with it.
func (r *rig) drain(f func(d *Dataplane) error) {
	r.t.Helper()
	r.onNode(func() error {
		d, err := openDrain(r.opts)
		if err != nil {
			return err
		}
		defer d.Close()
		return f(d)
	})
}

// TestUnknownPortsComeLast: while frontends of a cluster IP are missing, no port there is
// refused for being unknown, neither in the first Sync nor in a drain: another dataplane
// may serve it.
func TestUnknownPortsComeLast(t *testing.T) {
	r := newRig(t, nil)
	vip := netip.MustParseAddr("10.96.0.9")
	var all []*dataplane.Service
	for name, fe := range map[string]lb.Frontend{
		"a": frontend(lb.ClusterIP, lb.TCP, "10.96.0.9:80", lb.MasqueradeOffCluster),
		"b": frontend(lb.ClusterIP, lb.TCP, "10.96.0.9:81", lb.MasqueradeOffCluster),
		"c": frontend(lb.ClusterIP, lb.UDP, "10.96.0.9:80", lb.MasqueradeOffCluster),
	} {
		all = append(all, r.svc(name, lb.IPv4, fe.Proto, "random", r.pods(lb.IPv4, "backend1"), fe))
	}
	refused := 0
	look := func(m *maps, when string) {
		var v lbFrontend
		if m.frontends().Lookup(unknownKey(addrOf(vip)), &v) != nil {
			return
		}
		refused++
		for _, svc := range all {
			if key := svc.Frontends[0].FrontendKey; m.frontends().Lookup(frontendKeyOf(key), &v) != nil {
				t.Errorf("%s: unknown ports of %s are refused, and %s is not there", when, vip, key)
			}
		}
	}
	r.dp.maps.before = func(uint64) { look(r.dp.maps, "first Sync") }
	r.sync(dataplane.Delta{Full: true, Put: all})
	r.dp.maps.before = nil
	look(r.dp.maps, "after it")
	if refused == 0 {
		t.Error("unknown ports are not refused after the Sync")
	}
	r.answersFrom("client2", lab.TCP, "10.96.0.9:82", lab.Refused)
	r.stop()
	r.drain(func(d *Dataplane) error {
		d.maps.before = func(uint64) { look(d.maps, "drain") }
		err := d.drainAll(t.Context(), &memory{each: func(int) {}})
		look(d.maps, "after the drain")
		return err
	})
}

// TestDrainTracksOldConnections: before a Service goes, connection tracking is told of all
// TCP connections as netfilter sees them, and as masqueraded ones leave. One that ends then
// is forgotten, but for one that it follows by itself.
func TestDrainTracksOldConnections(t *testing.T) {
	r := newRig(t, nil)
	vip := netip.MustParseAddrPort("10.96.0.9:80")
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{
		r.svc("web", lb.IPv4, lb.TCP, "round-robin", r.pods(lb.IPv4, "backend1", "remote1"),
			frontend(lb.ClusterIP, lb.TCP, vip.String(), lb.MasqueradeOffCluster)),
	}})
	want, masked := map[dataplane.Flow]bool{}, map[dataplane.Flow]bool{}
	type held struct {
		flow dataplane.Flow
		end  func()
	}
	var all []held
	for _, from := range []string{"client1", "client2", lab.Node, lab.Outside} {
		for range 2 {
			c, res := r.lab.Host(from).Open(t.Context(), lab.Request{Proto: lab.TCP, To: vip})
			if res.Kind != lab.OK {
				t.Fatalf("%s: %s %s", from, res.Kind, res.Err)
			}
			fl := dataplane.Flow{Proto: lb.TCP, Client: res.Local, Backend: res.ServerLocal}
			end := func() { _ = c.Close(context.Background(), "rst") } // it may be closed
			t.Cleanup(end)
			all = append(all, held{fl, end})
			want[fl] = true
			if res.Seen != res.Local {
				masked[dataplane.Flow{Proto: lb.TCP, Client: res.Seen, Backend: res.ServerLocal}] = true
			}
		}
	}
	if len(masked) != 2 {
		t.Fatalf("%d connections are masqueraded, want the 2 from outside", len(masked))
	}
	r.stop()
	unknown, followed, later := all[2], all[3], all[7]
	delete(want, unknown.flow)
	r.drain(func(d *Dataplane) error {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		m := &memory{before: map[dataplane.Flow]bool{followed.flow: true}, each: func(n int) {
			if gone := len(d.frontends) == 0; gone != (n > 1) {
				t.Errorf("at the time %d that connection tracking is told, frontends are gone: %t", n, gone)
			}
			ending := []held{unknown, followed}
			if n == 2 {
				ending = []held{later} // which it knows since the first time
				cancel()               // it would wait for the ends of the connections
			}
			for _, h := range ending {
				h.end()
				eventuallyEnded(t, d, h.flow)
			}
		}}
		err := d.drainAll(ctx, m)
		if err != nil || m.told != 2 {
			t.Errorf("told %d times, error %v", m.told, err)
		}
		if !stdmaps.Equal(m.known, want) || !stdmaps.Equal(m.reserved, masked) {
			t.Errorf("connection tracking knows %v, want %v; has reserved %v, want %v", m.known, want, m.reserved, masked)
		}
		m.reserved = nil
		if d.reserve(m); !stdmaps.Equal(m.reserved, masked) {
			t.Errorf("renewed: %v, want %v", m.reserved, masked)
		}
		return nil
	})
}

// eventuallyEnded waits until d does not hold a connection any more.
func eventuallyEnded(t *testing.T, d *Dataplane, fl dataplane.Flow) {
	t.Helper()
	labtest.Within(t, labtest.Patience, "the end of a connection", func() bool {
		h, err := d.held()
		if err != nil {
			t.Fatal(err)
		}
		return !slices.Contains(h.open, fl)
	})
}
