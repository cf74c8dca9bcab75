// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// totals adds up the counters of all backends.
func (r *rig) totals() (opened, closed, failed uint64) {
	r.t.Helper()
	s, err := r.dp.Stats()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, b := range s.Backends {
		opened, closed, failed = opened+b.Opened, closed+b.Closed, failed+b.Failed
	}
	return opened, closed, failed
}

// wantTotals waits until the counters are as they should be; a count that is too
// high never comes down again.
func (r *rig) wantTotals(what string, opened, closed, failed uint64) {
	r.t.Helper()
	want := fmt.Sprintf("opened %d closed %d failed %d", opened, closed, failed)
	var got string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		o, c, f := r.totals()
		got = fmt.Sprintf("opened %d closed %d failed %d", o, c, f)
		if got == want {
			return
		}
	}
	r.t.Errorf("%s: %s, want %s", what, got, want)
}

// wantAnswered checks how many connections backends answered. Those that a client knows of
// are counted.
func (r *rig) wantAnswered(what string, want uint64) {
	r.t.Helper()
	s, err := r.dp.Stats()
	if err != nil {
		r.t.Fatal(err)
	}
	var got uint64
	for _, b := range s.Backends {
		got += b.Answered
	}
	if got != want {
		r.t.Errorf("%s: %d connections were answered, want %d", what, got, want)
	}
}

// TestCounts opens connections and ends them in every way that a client or a
// backend has. Each is counted once, from sockets and from packets.
func TestCounts(t *testing.T) {
	r := newRig(t, nil)
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{
		r.svc("web", lb.IPv4, lb.TCP, "round-robin", r.pods(lb.IPv4, "backend1", "backend2"),
			frontend(lb.ClusterIP, lb.TCP, "10.96.0.1:80", lb.MasqueradeOffCluster)),
		r.svc("deaf", lb.IPv4, lb.TCP, "random",
			[]lb.Backend{{Addr: netip.AddrPortFrom(r.lab.Host("backend3").Addr4, 9), Weight: 1}},
			frontend(lb.ClusterIP, lb.TCP, "10.96.0.2:80", lb.MasqueradeOffCluster)),
	}})
	var opened, closed, failed uint64
	step := func(what string) {
		t.Helper()
		r.wantTotals(what, opened, closed, failed)
		r.wantAnswered(what, opened-failed)
	}
	for _, from := range []string{"client1", "client2", lab.Node, lab.Outside} {
		const n = 10
		var conns []*lab.Conn
		for range n {
			conns = append(conns, r.open(from, lab.TCP, "10.96.0.1:80"))
		}
		opened += n
		step(from + " opened")
		for i, c := range conns[:6] {
			if err := c.Close(t.Context(), []string{"fin", "rst"}[i%2]); err != nil {
				t.Fatal(err)
			}
		}
		closed += 6
		step(from + " closed and reset")
		if from != lab.Node { // its helper is the servers' too
			r.lab.Host(from).Kill()
			closed += 4
			step(from + " was killed")
			if err := r.lab.Host(from).Restart(); err != nil {
				t.Fatal(err)
			}
		} else {
			for _, c := range conns[6:] {
				r.ping(c, from)
				if err := c.Close(t.Context(), "fin"); err != nil {
					t.Fatal(err)
				}
			}
			closed += 4
		}
		got, _ := r.dial(from, lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort("10.96.0.2:80")}, 5)
		if got[string(lab.Refused)] != 5 {
			t.Errorf("%s to a closed port: %v, want 5 refusals", from, got)
		}
		opened, closed, failed = opened+5, closed+5, failed+5
		step(from + " was refused")
	}
	r.lab.Host("backend1").Kill()
	r.lab.Host("backend2").Kill()
	step("after the backends were killed")
}

// TestCountsGivingUp counts connections that the client gave up while nobody
// answered: they failed.
func TestCountsGivingUp(t *testing.T) {
	r := newRig(t, nil)
	nobody := netip.MustParseAddrPort("10.244.2.99:80") // the next node has no such pod
	r.sync(dataplane.Delta{Put: []*dataplane.Service{
		r.svc("hole", lb.IPv4, lb.TCP, "random", []lb.Backend{{Addr: nobody, Weight: 1}},
			frontend(lb.ClusterIP, lb.TCP, "10.96.0.1:80", lb.MasqueradeOffCluster))}})
	req := lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort("10.96.0.1:80"), Timeout: 50 * time.Millisecond}
	got, _ := r.dial("client1", req, 3)
	if got["backend1"] != 0 {
		t.Errorf("answers: %v, want none", got)
	}
	r.wantTotals("given up", 3, 3, 3)
	r.wantAnswered("given up", 0)
}

// TestBackendLeavesAndReturns removes a backend that has connections: it keeps
// them and their count, gets no new ones, and goes on where it was when it
// returns; it is forgotten only after its last connection has ended.
func TestBackendLeavesAndReturns(t *testing.T) {
	r := newRig(t, nil)
	put := func(hosts ...string) {
		r.sync(dataplane.Delta{Put: []*dataplane.Service{
			r.svc("web", lb.IPv4, lb.TCP, "random", r.pods(lb.IPv4, hosts...),
				frontend(lb.ClusterIP, lb.TCP, "10.96.0.1:80", lb.MasqueradeOffCluster))}})
	}
	state := func(host string) (live uint64, leaving, there bool) {
		s, err := r.dp.Stats()
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range s.Backends {
			if b.Backend.Addr() == r.lab.Host(host).Addr4 {
				return b.Opened - b.Closed, b.Leaving, true
			}
		}
		return 0, false, false
	}
	put("backend1")
	conns := []*lab.Conn{r.open("client1", lab.TCP, "10.96.0.1:80"), r.open("client2", lab.TCP, "10.96.0.1:80")}
	for range 3 {
		put("backend2")
		r.dp.reclaim(t.Context())
		if live, leaving, there := state("backend1"); live != 2 || !leaving || !there {
			t.Fatalf("removed with connections: live %d leaving %t there %t, want 2 true true", live, leaving, there)
		}
		if got, _ := r.dial("client1", lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort("10.96.0.1:80")}, 5); got["backend2"] != 5 {
			t.Errorf("new connections: %v, want 5 at backend2", got)
		}
		put("backend1")
		if live, leaving, _ := state("backend1"); live != 2 || leaving {
			t.Fatalf("returned: live %d leaving %t, want 2 false", live, leaving)
		}
	}
	for _, c := range conns {
		r.ping(c, "after leaving and returning")
	}
	put("backend2")
	for _, c := range conns {
		if err := c.Close(t.Context(), "fin"); err != nil {
			t.Fatal(err)
		}
	}
	r.eventually("a backend without connections is forgotten", func() bool {
		r.dp.reclaim(t.Context())
		_, _, there := state("backend1")
		return !there
	})
}

// TestSweep lets time pass: idle connections are forgotten and counted as ended.
func TestSweep(t *testing.T) {
	r := newRig(t, nil)
	r.serveVIPs(lb.TCP, "backend1")
	var d dataplane.Delta
	d.Put = append(d.Put, r.svc("db", lb.IPv4, lb.TCP, "random", r.pods(lb.IPv4, "backend1"),
		frontend(lb.ClusterIP, lb.TCP, "10.96.0.11:80", lb.MasqueradeOffCluster)))
	d.Put = append(d.Put, r.svc("dns", lb.IPv4, lb.UDP, "random", r.pods(lb.IPv4, "backend1"),
		frontend(lb.ClusterIP, lb.UDP, "10.96.0.10:53", lb.MasqueradeOffCluster)))
	r.sync(d)
	tcp := r.open("client2", lab.TCP, "10.96.0.11:80")
	r.open(lab.Outside, lab.TCP, vips[lb.IPv6])
	for _, from := range []string{"client1", "client2"} {
		r.dial(from, lab.Request{Proto: lab.UDP, To: netip.MustParseAddrPort("10.96.0.10:53")}, 3)
	}
	const withSocket = 3 // flows of client1, which ended with their sockets
	r.wantTotals("opened", 8, withSocket, 0)
	for _, tc := range []struct {
		what   string
		later  time.Duration
		closed uint64
	}{
		{"at once", 0, withSocket},
		{"after a minute", time.Minute, withSocket},
		{"after UDP's time-out", 3 * time.Minute, 6},
		{"after TCP's time-out", 25 * time.Hour, 8},
	} {
		r.sweepLater(tc.later)
		r.wantTotals(tc.what, 8, tc.closed, 0)
		if tc.later == 0 {
			r.ping(tcp, "after a sweep")
			r.eventually("the last segments are acknowledged", r.acknowledged)
		}
	}
	r.sweepLater(25 * time.Hour)
	if n := r.dp.swept.entries; n != 0 {
		t.Errorf("%d entries are left in conns, want 0", n)
	}
	r.ping(tcp, "a connection that was forgotten, and has but one backend, is picked up again")
}

// acknowledged tells if no TCP connection of the lab waits for an acknowledgment: a
// delayed one would be the first packet of a connection that a sweep has forgotten.
func (r *rig) acknowledged() bool {
	r.t.Helper()
	waiting := 0
	for _, h := range r.lab.Hosts() {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			var socks []*netlink.InetDiagTCPInfoResp
			err := h.Do(func() (err error) {
				socks, err = netlink.SocketDiagTCPInfo(family) //nolint:forbidigo // half a list is asked for again
				return err
			})
			if errors.Is(err, netlink.ErrDumpInterrupted) {
				return false
			}
			if err != nil {
				r.t.Fatal(err)
			}
			for _, s := range socks {
				if s.InetDiagMsg.State == netlink.TCP_ESTABLISHED && s.TCPInfo.Unacked > 0 {
					waiting++
				}
			}
		}
	}
	return waiting == 0
}

// sweepLater sweeps as if d had passed.
func (r *rig) sweepLater(d time.Duration) {
	r.t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		r.t.Fatal(err)
	}
	if err := r.dp.sweepAt(uint64(now.Nano() + int64(d))); err != nil {
		r.t.Fatal(err)
	}
}
