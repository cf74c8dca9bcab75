// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

const endsVIP = "10.96.0.1:80"

// endsWorld serves the VIP by TCP and UDP; behind the next port nobody listens.
func (r *rig) endsWorld(algorithm string) dataplane.Delta {
	hosts := []string{"backend1", "backend2", "backend3"}
	deaf := r.pods(lb.IPv4, hosts...)
	for i := range deaf {
		deaf[i].Addr = netip.AddrPortFrom(deaf[i].Addr.Addr(), 9)
	}
	return dataplane.Delta{Full: true, Put: []*dataplane.Service{
		r.svc("web", lb.IPv4, lb.TCP, algorithm, r.pods(lb.IPv4, hosts...),
			frontend(lb.ClusterIP, lb.TCP, endsVIP, lb.MasqueradeOffCluster)),
		r.svc("deaf", lb.IPv4, lb.TCP, algorithm, deaf,
			frontend(lb.ClusterIP, lb.TCP, "10.96.0.1:81", lb.MasqueradeOffCluster)),
		r.svc("dns", lb.IPv4, lb.UDP, algorithm, r.pods(lb.IPv4, hosts...),
			frontend(lb.ClusterIP, lb.UDP, endsVIP, lb.MasqueradeOffCluster)),
	}}
}

// recountIsExact counts anew, twice, and fails if a count was off.
func (r *rig) recountIsExact(what string) {
	r.t.Helper()
	for range 2 {
		if err := r.dp.Recount(); err != nil {
			r.t.Fatal(err)
		}
	}
	r.dp.mu.Lock()
	defer r.dp.mu.Unlock()
	if r.dp.recounted.corrections != 0 || len(r.dp.recounted.off) != 0 {
		r.t.Errorf("%s: %d corrections, off %v", what, r.dp.recounted.corrections, r.dp.recounted.off)
	}
}

// TestEndsOfSockets ends connections in ways that only a process of its own can.
// Each is counted when it ends, once, and the agent's restart in between changes
// nothing.
func TestEndsOfSockets(t *testing.T) {
	r := newRig(t, nil)
	r.sync(r.endsWorld("least-connection"))
	var opened, closed, failed uint64
	want := func(what string, o, c, f uint64) {
		t.Helper()
		opened, closed, failed = opened+o, closed+c, failed+f
		r.wantTotals(what, opened, closed, failed)
		r.recountIsExact(what)
	}
	run := func(name string) *client {
		t.Helper()
		c := r.startClient("client1", name, endsVIP, 1)
		c.ready()
		return c
	}

	c := run("dup")
	want("dup", 1, 0, 0)
	c.next()
	want("one of two descriptors was closed", 0, 0, 0)
	c.next()
	want("both were closed", 0, 1, 0)

	c = run("fork")
	want("a child has the socket", 1, 0, 0)
	c.next()
	want("the child has ended", 0, 1, 0)

	c = run("again")
	want("refused", 1, 1, 1)
	for range 2 {
		c.next()
		want("the same socket was connected", 1, 0, 0)
		c.next()
		want("and disconnected", 0, 1, 0)
	}

	c = run("dup")
	want("before a kill", 1, 0, 0)
	r.stop()
	c.kill()
	r.start()
	r.sync(r.endsWorld("least-connection"))
	want("killed while no agent ran", 0, 1, 0)

	c = run("disconnect")
	want("UDP", 1, 0, 0)
	c.next()
	want("UDP, connected again", 1, 1, 0)
	c.next()
	want("UDP, disconnected: nobody is told", 0, 0, 0)
	c.kill()
	want("UDP, closed", 0, 1, 0)

	c = r.startClient("client1", "udp", endsVIP, 5)
	c.ready()
	want("datagrams", 5, 0, 0)
	c.kill()
	want("their sockets were closed", 0, 5, 0)
}

// TestHalfOpen lets one side vanish: the connection lives until the other side, or
// the sweep, ends it.
func TestHalfOpen(t *testing.T) {
	r := newRig(t, nil)
	r.sync(r.endsWorld("least-connection"))
	for _, from := range []string{"client1", "client2"} {
		r.open(from, lab.TCP, endsVIP)
	}
	r.wantTotals("open", 2, 0, 0)
	r.onNode(func() error { return setLinks(false, "v-backend1", "v-backend2", "v-backend3") })
	r.recountIsExact("half open")
	r.wantTotals("nobody knows", 2, 0, 0)
	for _, from := range []string{"client1", "client2"} {
		r.lab.Host(from).Kill()
	}
	r.wantTotals("the socket's end is known, the packets' FIN has no answer", 2, 1, 0)
	r.sweepLater(2 * time.Hour)
	r.wantTotals("after the time-out of half-closed connections", 2, 2, 0)
	r.recountIsExact("at the end")
}

// TestRecountFindsMiscounts spoils a counter: the second recount reports it, unless there
// may be sockets that it does not see.
func TestRecountFindsMiscounts(t *testing.T) {
	r := newRig(t, nil)
	r.sync(r.endsWorld("round-robin"))
	for _, from := range []string{"client1", "client2", "client1", "client2"} {
		r.open(from, lab.TCP, endsVIP)
	}
	r.recountIsExact("as it should be")
	spoiled := &r.dp.maps.stats[r.dp.backendsInUse()[0]]
	all := uint64(0)
	for _, tc := range []struct {
		name    string
		counter *uint64
		by      uint64
		hidden  bool
	}{
		{"counted too few", &spoiled.Closed, 1, false},
		{"counted too many", &spoiled.Opened, 3, socketsByFile()},
	} {
		*tc.counter += tc.by
		for i := range 2 {
			if i == 1 && !tc.hidden {
				all += tc.by
			}
			if err := r.dp.Recount(); err != nil {
				t.Fatal(err)
			}
			s, err := r.dp.Stats()
			if err != nil {
				t.Fatal(err)
			}
			if s.Corrections != all {
				t.Errorf("%s: recount %d: %d corrections, want %d", tc.name, i, s.Corrections, all)
			}
		}
		*tc.counter -= tc.by
	}
}

// TestMillions makes many connections of all kinds, through sockets and through
// packets, under least-connection: what is counted open is what is open. The whole
// million runs with LBPROXY_TEST_CONNECTIONS=1000000.
func TestMillions(t *testing.T) {
	n := 40_000
	if s := os.Getenv("LBPROXY_TEST_CONNECTIONS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	r := newRig(t, nil)
	r.sync(r.endsWorld("least-connection"))
	for _, h := range []string{"client1", "client2"} {
		if err := r.lab.Host(h).Do(func() error {
			return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("33000 60999"), 0)
		}); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	c := r.startClient("client1", "mill", endsVIP, n)
	got, _ := r.dial("client2", lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(endsVIP)}, n/100)
	for who, k := range got {
		t.Logf("packets: %s %d", who, k)
	}
	r.recountIsExact("in full flow")
	c.ready()
	t.Logf("%d connections in %v", n+n/100, time.Since(start))
	kept := uint64(0)
	for i := 1; i <= n; i++ {
		if i%1000 == 1 && i%7 != 0 {
			kept++
		}
	}
	ended := time.Now().Add(time.Minute) // what no program is told of is found by the recount, within 40 s
	opened, closed, failed := r.totals()
	for opened-closed != kept && time.Now().Before(ended) {
		<-time.After(5 * time.Millisecond)
		opened, closed, failed = r.totals()
	}
	if opened-closed != kept {
		t.Errorf("%d connections are open, want the %d that were kept", opened-closed, kept)
	}
	t.Logf("opened %d, closed %d, failed %d", opened, closed, failed)
	if opened != uint64(n+n/100) {
		t.Errorf("opened %d, want %d", opened, n+n/100)
	}
	r.recountIsExact("at the end")
	c.kill()
	r.wantTotals("the process was killed", opened, opened, failed)
	r.recountIsExact("after that")
}

// setLinks sets devices of the calling thread's namespace up or down.
func setLinks(up bool, names ...string) error {
	for _, name := range names {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		set := netlink.LinkSetDown
		if up {
			set = netlink.LinkSetUp
		}
		if err := set(l); err != nil {
			return err
		}
	}
	return nil
}
