// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

func init() {
	scripts["many at once"] = scriptManyAtOnce
	scripts["first at once"] = scriptFirstAtOnce
}

const atOnce = 8 // threads

// scriptManyAtOnce connects n times from each of several threads, after one connection.
func scriptManyAtOnce(to netip.AddrPort, n int, step func()) error {
	fd, err := dialFD(to, unix.SOCK_DGRAM)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	step()
	var wg sync.WaitGroup
	errs := make(chan error, atOnce)
	for range atOnce {
		wg.Go(func() {
			for range n {
				fd, err := dialFD(to, unix.SOCK_DGRAM)
				if err != nil {
					errs <- err
					return
				}
				unix.Close(fd)
			}
		})
	}
	wg.Wait()
	close(errs)
	step()
	return <-errs
}

// scriptFirstAtOnce connects once from each of several threads to ports of to, one after
// the other: threads begin with each together.
func scriptFirstAtOnce(to netip.AddrPort, n int, step func()) error {
	step()
	for i := range n {
		var wg sync.WaitGroup
		begin := make(chan struct{})
		errs := make(chan error, atOnce)
		for range atOnce {
			wg.Go(func() {
				<-begin
				fd, err := dialFD(netip.AddrPortFrom(to.Addr(), to.Port()+uint16(i)), unix.SOCK_DGRAM)
				if err != nil {
					errs <- err
					return
				}
				unix.Close(fd)
			})
		}
		close(begin)
		wg.Wait()
		close(errs)
		if err := <-errs; err != nil {
			return err
		}
	}
	step()
	return nil
}

// openedBy returns how many connections each backend of a Service got.
func (r *rig) openedBy(name string) map[netip.AddrPort]uint64 {
	r.t.Helper()
	s, err := r.dp.Stats()
	if err != nil {
		r.t.Fatal(err)
	}
	opened := map[netip.AddrPort]uint64{}
	for _, b := range s.Backends {
		if b.Service.Name == name && b.Opened > 0 {
			opened[b.Backend] = b.Opened
		}
	}
	return opened
}

// TestAffinityUnderRenewal connects from many threads at once: an entry that another CPU
// renews after the clock was read is not old.
func TestAffinityUnderRenewal(t *testing.T) {
	r := newRig(t, nil)
	svc := sticky(r.svc("web", lb.IPv4, lb.UDP, "round-robin", r.pods(lb.IPv4, "backend1", "backend2", "backend3"),
		frontend(lb.ClusterIP, lb.UDP, staleVIP4, lb.MasqueradeOffCluster)), time.Hour)
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc}})
	c := r.startClient("client1", "many at once", staleVIP4, 20_000)
	c.ready()
	c.next()
	if opened := r.openedBy("web"); len(opened) != 1 {
		t.Errorf("connections of one client went to %v", opened)
	}
}

// TestAffinityOfFirstConnections begins with several connections at once, as browsers do:
// all go to the backend that is kept.
func TestAffinityOfFirstConnections(t *testing.T) {
	r := newRig(t, nil)
	const n = 300
	d := dataplane.Delta{Full: true}
	for i := range n {
		d.Put = append(d.Put, sticky(r.svc(fmt.Sprintf("web%d", i), lb.IPv4, lb.UDP, "round-robin",
			r.pods(lb.IPv4, "backend1", "backend2", "backend3"),
			frontend(lb.ClusterIP, lb.UDP, fmt.Sprintf("10.96.0.53:%d", 1000+i), lb.MasqueradeOffCluster)), time.Hour))
	}
	r.sync(d)
	c := r.startClient("client1", "first at once", "10.96.0.53:1000", n)
	c.ready()
	c.next()
	split := 0
	for i := range n {
		if len(r.openedBy(fmt.Sprintf("web%d", i))) != 1 {
			split++
		}
	}
	if split > 0 {
		t.Errorf("%d of %d Services gave the first connections of a client to more than one backend", split, n)
	}
}

// TestVIPMovesToAnotherService moves the address, not the backends: flows of UDP follow
// the address, on every path.
func TestVIPMovesToAnotherService(t *testing.T) {
	r := newRig(t, nil)
	const at = "172.32.0.77:53"
	vip := netip.MustParseAddrPort(at)
	svc := func(name, own, host string, more ...lb.Frontend) *dataplane.Service {
		return r.svc(name, lb.IPv4, lb.UDP, "round-robin", r.pods(lb.IPv4, host),
			append([]lb.Frontend{frontend(lb.ClusterIP, lb.UDP, own, lb.MasqueradeOffCluster)}, more...)...)
	}
	shared := frontend(lb.LoadBalancer, lb.UDP, at, lb.MasqueradeAlways)
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{
		svc("blue", "10.96.0.61:53", "backend1", shared), svc("green", "10.96.0.62:53", "backend2"),
	}})
	sockets := map[string]*lab.UDPSocket{}
	ask := func(from string) string { return sockets[from].Exchange(t.Context(), vip, nil).Backend }
	for _, from := range callers {
		var err error
		if sockets[from], err = r.lab.Host(from).OpenUDP(t.Context(), lab.Request{To: vip}); err != nil {
			t.Fatal(err)
		}
		if who := ask(from); who != "backend1" {
			t.Fatalf("from %s: %s, want backend1", from, who)
		}
	}
	r.sync(dataplane.Delta{Put: []*dataplane.Service{
		svc("blue", "10.96.0.61:53", "backend1"), svc("green", "10.96.0.62:53", "backend2", shared),
	}})
	for _, from := range callers {
		r.eventually("the flow from "+from+" has moved", func() bool { return ask(from) == "backend2" })
	}
}
