// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

const longSuspicion = time.Hour // longer than any test takes

// suspecting makes a Service over pods of hosts that suspects for d.
func (r *rig) suspecting(f lb.Family, algorithm string, d time.Duration, hosts ...string) *dataplane.Service {
	r.t.Helper()
	svc := r.svc("web", f, lb.TCP, algorithm, r.pods(f, hosts...), frontend(lb.ClusterIP, lb.TCP, vips[f], lb.MasqueradeOffCluster))
	svc.Balance.Algorithm = algorithm
	svc.Terms.Suspect = d
	r.sync(dataplane.Delta{Full: true}) // whatever was known of the backends is forgotten
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc}})
	return svc
}

// at returns the address of the backend at a host.
func (r *rig) at(f lb.Family, host string) netip.AddrPort { return r.pods(f, host)[0].Addr }

// idAt returns the id of the backend at a host.
func (r *rig) idAt(f lb.Family, host string) uint32 {
	r.t.Helper()
	for _, id := range r.dp.backendsInUse() {
		if r.dp.maps.isAt(id, r.at(f, host)) && r.dp.maps.backends[id].State == uint8(lbBackendStateBACKEND_ACTIVE) {
			return id
		}
	}
	r.t.Fatalf("no backend at %s", host)
	return 0
}

// suspected tells whether new connections avoid the backend at a host.
func (r *rig) suspected(f lb.Family, host string) bool {
	return r.dp.maps.suspectFor(r.idAt(f, host)) > 0
}

// forgive ends every suspicion.
func (r *rig) forgive(svc *dataplane.Service) {
	r.t.Helper()
	for _, b := range svc.Cluster.Backends {
		if err := r.dp.Suspect(svc.Name, b.Addr, time.Time{}, 0); err != nil {
			r.t.Fatal(err)
		}
	}
}

// stopServing makes a host refuse.
func (r *rig) stopServing(host string) {
	r.t.Helper()
	if err := r.lab.Host(host).StopServe(r.t.Context(), lab.TCP, lab.AnyAddr(backendPort)); err != nil {
		r.t.Fatal(err)
	}
}

// symptom returns the next one, which must come soon.
func (r *rig) symptom() lb.Symptom {
	r.t.Helper()
	select {
	case s := <-r.dp.Symptoms():
		return s
	case <-time.After(patience):
		r.t.Fatal("no symptom came")
		return lb.Symptom{}
	}
}

// noSymptom fails if one waits. What the kernel tells is handed on in order, so a
// symptom that another backend makes would come behind it.
func (r *rig) noSymptom() {
	r.t.Helper()
	select {
	case s := <-r.dp.Symptoms():
		r.t.Errorf("symptom %+v, want none", s)
	default:
	}
}

// paths are the hosts of a socket and of packets.
var suspectPaths = []struct{ name, host string }{{"sockets", "client1"}, {"packets", "client2"}}

// TestRefusedIsAvoided: after one connection that is refused, all that follow go
// elsewhere, by each algorithm, and the agent is told once.
func TestRefusedIsAvoided(t *testing.T) {
	r := newRig(t, nil)
	r.stopServing("backend1")
	for _, f := range []lb.Family{lb.IPv4, lb.IPv6} {
		for _, p := range suspectPaths {
			for _, name := range algo.Names() {
				t.Run(fmt.Sprintf("%s/%s/%s", f, p.name, name), func(t *testing.T) {
					r.t = t
					svc := r.suspecting(f, name, longSuspicion, "backend1", "backend2", "backend3")
					r.forgive(svc)
					req := lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(vips[f])}
					refused := 0
					for range 40 { // a hash may never lead there
						if got, _ := r.dial(p.host, req, 1); got["refused"] == 1 {
							refused++
						}
					}
					if refused > 1 {
						t.Errorf("%d of 40 connections were refused, want at most 1", refused)
					}
					if refused == 0 && name != "hash" && name != "ip-hash" {
						t.Error("no connection met the backend that refuses")
					}
					if refused == 0 {
						return
					}
					want := lb.Symptom{Service: svc.Name, Backend: r.at(f, "backend1"), Kind: lb.Refused}
					if s := r.symptom(); s != want {
						t.Errorf("symptom %+v, want %+v", s, want)
					}
					r.noSymptom()
				})
			}
		}
	}
}

// blackhole makes a host drop what comes to its port: a filter of the socket that listens
// there lets nothing in.
func (r *rig) blackhole(host string) {
	r.t.Helper()
	r.stopServing(host)
	var l net.Listener
	if err := r.lab.Host(host).Do(func() (err error) {
		l, err = (&net.ListenConfig{Control: dropAll}).Listen(r.t.Context(), "tcp", fmt.Sprintf(":%d", backendPort))
		return err
	}); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { l.Close() })
}

// dropAll makes a socket ignore whatever comes.
func dropAll(_, _ string, c syscall.RawConn) error {
	ret := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K} // 0 bytes
	var err error
	if failed := c.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &ret})
	}); failed != nil {
		return failed
	}
	return err
}

// TestUnansweredIsAvoided: the first SYN that is sent again tells that nobody answers,
// long before the client gives up. On the packet path it goes to another backend itself.
func TestUnansweredIsAvoided(t *testing.T) {
	r := newRig(t, nil)
	r.blackhole("backend1")
	for _, f := range []lb.Family{lb.IPv4, lb.IPv6} {
		for _, p := range suspectPaths {
			t.Run(fmt.Sprintf("%s/%s", f, p.name), func(t *testing.T) {
				r.t = t
				svc := r.suspecting(f, "round-robin", longSuspicion, "backend1", "backend2")
				r.forgive(svc)
				req := lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(vips[f]), Timeout: 2500 * time.Millisecond}
				unanswered := 0
				if p.name == "sockets" {
					unanswered = 1 // the address was chosen for good by connect()
				}
				got, rs := r.dial(p.host, req, 2) // takes turns
				if got["timeout"] != unanswered || got["backend2"] != 2-unanswered {
					t.Fatalf("two connections: %v, want %d that nobody answers and the rest by backend2: %+v", got, unanswered, rs)
				}
				want := lb.Symptom{Service: svc.Name, Backend: r.at(f, "backend1"), Kind: lb.Unanswered}
				if s := r.symptom(); s != want {
					t.Errorf("symptom %+v, want %+v", s, want)
				}
				if got, _ := r.dial(p.host, req, 10); got["backend2"] != 10 {
					t.Errorf("then: %v, want 10 by backend2", got)
				}
			})
		}
	}
}

// resetter accepts connections at thinkPort of a host, and resets each.
func (r *rig) resetter(host string) {
	r.t.Helper()
	l := r.listener(host)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // it is closed when the test ends
			}
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}
	}()
}

// TestResetIsTold: a backend that resets an established connection is told of, and not
// avoided.
func TestResetIsTold(t *testing.T) {
	r := newRig(t, nil)
	r.resetter("backend1")
	for _, p := range suspectPaths {
		t.Run(p.name, func(t *testing.T) {
			r.t = t
			bs := r.pods(lb.IPv4, "backend1")
			bs[0].Addr = netip.AddrPortFrom(bs[0].Addr.Addr(), thinkPort)
			svc := r.svc("web", lb.IPv4, lb.TCP, "round-robin", bs, frontend(lb.ClusterIP, lb.TCP, vips[lb.IPv4], lb.MasqueradeOffCluster))
			svc.Terms.Suspect = longSuspicion
			r.sync(dataplane.Delta{Full: true})
			r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc}})
			got, rs := r.dial(p.host, lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(vips[lb.IPv4])}, 3)
			if len(rs) != 3 || got["backend1"] > 0 || got["refused"] > 0 {
				t.Fatalf("%v: %+v, want three that are reset", got, rs)
			}
			want := lb.Symptom{Service: svc.Name, Backend: bs[0].Addr, Kind: lb.Reset}
			if s := r.symptom(); s != want {
				t.Errorf("symptom %+v, want %+v", s, want)
			}
			r.noSymptom()
			for _, id := range r.dp.backendsInUse() {
				if r.dp.maps.suspectFor(id) > 0 {
					t.Errorf("backend %d is avoided", id)
				}
			}
		})
	}
}

// TestAllSuspectAreServed: if nobody else is there, suspects serve, all of them.
func TestAllSuspectAreServed(t *testing.T) {
	r := newRig(t, nil)
	for _, name := range algo.Names() {
		svc := r.suspecting(lb.IPv4, name, longSuspicion, "backend1", "backend2", "backend3")
		for _, b := range svc.Cluster.Backends {
			if err := r.dp.Suspect(svc.Name, b.Addr, time.Now().Add(time.Hour), 0); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range suspectPaths {
			got, _ := r.dial(p.host, lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(vips[lb.IPv4])}, 30)
			answered := got["backend1"] + got["backend2"] + got["backend3"]
			if answered != 30 || name == "round-robin" && (got["backend1"] != 10 || got["backend2"] != 10) {
				t.Errorf("%s, %s: %v, want 30 answers, as if nobody was suspect", name, p.name, got)
			}
		}
	}
}

// TestSuspicionEnds: by itself, also while no agent runs; and it is not made longer by
// those who meet the backend all the same.
func TestSuspicionEnds(t *testing.T) {
	r := newRig(t, nil)
	r.stopServing("backend1")
	svc := r.suspecting(lb.IPv4, "round-robin", 3*time.Second, "backend1")
	req := lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(vips[lb.IPv4])}
	r.dial("client1", req, 1)
	id := r.idAt(lb.IPv4, "backend1")
	until := atomic.LoadUint64(&r.dp.maps.suspects[id].Until)
	if until == 0 {
		t.Fatal("the backend is not suspect")
	}
	r.dial("client1", req, 5)
	if again := atomic.LoadUint64(&r.dp.maps.suspects[id].Until); again != until {
		t.Errorf("five more that were refused made it %v longer", time.Duration(again-until))
	}
	r.stop()
	r.within(patience, "suspicion ends without an agent", func() bool {
		v, err := OpenView(r.opts.BPFFS)
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		views, err := v.Services()
		if err != nil {
			t.Fatal(err)
		}
		return !views[0].Backends[0].Suspect
	})
	r.dial("client1", req, 1) // and begins anew; nobody is told
	r.start()
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc}})
	if again := atomic.LoadUint64(&r.dp.maps.suspects[id].Until); again <= until {
		t.Error("the kernel suspected nobody without an agent, or a start of the agent ended that")
	}
	r.noSymptom()
}

// TestCalm: after the agent has said so, failures mean nothing for a while.
func TestCalm(t *testing.T) {
	r := newRig(t, nil)
	r.stopServing("backend1")
	svc := r.suspecting(lb.IPv4, "round-robin", longSuspicion, "backend1", "backend2")
	req := lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(vips[lb.IPv4])}
	for _, p := range suspectPaths {
		if err := r.dp.Suspect(svc.Name, r.at(lb.IPv4, "backend1"), time.Time{}, time.Hour); err != nil {
			t.Fatal(err)
		}
		if got, _ := r.dial(p.host, req, 10); got["refused"] != 5 {
			t.Errorf("%s: %v while the kernel is calm, want every second one refused", p.name, got)
		}
		r.noSymptom()
	}
	r.forgive(svc) // and calm is over
	if got, _ := r.dial("client1", req, 10); got["refused"] != 1 {
		t.Errorf("%v when calm is over, want one refused", got)
	}
}

// TestSuspicionIsNotInherited: who gets the id of a suspect is none, and what becomes of
// connections of the one before does not count.
func TestSuspicionIsNotInherited(t *testing.T) {
	r := newRig(t, nil)
	r.stopServing("backend1")
	svc := r.suspecting(lb.IPv4, "round-robin", longSuspicion, "backend1")
	r.dial("client1", lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(vips[lb.IPv4])}, 1)
	id := r.idAt(lb.IPv4, "backend1")
	if !r.suspected(lb.IPv4, "backend1") {
		t.Fatal("the backend is not suspect")
	}
	r.sync(dataplane.Delta{Full: true})
	r.within(patience, "the backend's id is free", func() bool {
		r.dp.reclaim(t.Context())
		return r.dp.maps.backends[id].State == uint8(lbBackendStateBACKEND_FREE)
	})
	old := r.dp.maps.backends[id].Gen
	r.suspecting(lb.IPv4, "round-robin", longSuspicion, "backend2")
	if got := r.idAt(lb.IPv4, "backend2"); got != id {
		t.Fatalf("backend2 has id %d, want %d again", got, id)
	}
	if r.suspected(lb.IPv4, "backend2") {
		t.Error("suspicion was inherited")
	}
	told := lbSymptom{At: uint64(monotonic()), Backend: id, Gen: old, Kind: uint32(lb.Refused)}
	if s, ok := r.dp.symptomOf(told); ok {
		t.Errorf("a symptom of the one before counts: %+v, as one of %v", s, svc.Name)
	}
}

// TestSuspicionSparesAffinity: a client's connection passes by a suspect, and the client
// is back when that is over.
func TestSuspicionSparesAffinity(t *testing.T) {
	r := newRig(t, nil)
	svc := r.svc("web", lb.IPv4, lb.TCP, "round-robin", r.pods(lb.IPv4, "backend1", "backend2", "backend3"),
		frontend(lb.ClusterIP, lb.TCP, vips[lb.IPv4], lb.MasqueradeOffCluster))
	svc.Terms.Suspect, svc.Terms.Affinity = longSuspicion, time.Hour
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc}})
	req := lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(vips[lb.IPv4])}
	for _, p := range suspectPaths {
		_, rs := r.dial(p.host, req, 1)
		mine := rs[0].Backend
		if err := r.dp.Suspect(svc.Name, r.at(lb.IPv4, mine), time.Now().Add(time.Hour), 0); err != nil {
			t.Fatal(err)
		}
		if got, _ := r.dial(p.host, req, 6); got[mine] != 0 || len(got) != 2 {
			t.Errorf("%s: %v while %s is suspect, want the two others", p.name, got, mine)
		}
		r.forgive(svc)
		if got, _ := r.dial(p.host, req, 6); got[mine] != 6 {
			t.Errorf("%s: %v when suspicion is over, want 6 by %s", p.name, got, mine)
		}
	}
}

// TestSuspicionIsOfTCP: UDP goes where it always went, and marks nobody.
func TestSuspicionIsOfTCP(t *testing.T) {
	r := newRig(t, nil)
	svc := r.svc("web", lb.IPv4, lb.UDP, "round-robin", r.pods(lb.IPv4, "backend1", "backend2"),
		frontend(lb.ClusterIP, lb.UDP, vips[lb.IPv4], lb.MasqueradeOffCluster))
	svc.Terms.Suspect = longSuspicion
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc}})
	if err := r.lab.Host("backend1").StopServe(t.Context(), lab.UDP, lab.AnyAddr(backendPort)); err != nil {
		t.Fatal(err)
	}
	for _, p := range suspectPaths {
		for _, connected := range []bool{true, false} {
			req := lab.Request{Proto: lab.UDP, Connected: connected, To: netip.MustParseAddrPort(vips[lb.IPv4]), Timeout: time.Second}
			if got, _ := r.dial(p.host, req, 6); got["backend2"] != 3 {
				t.Errorf("%s: %v, want 3 of 6 by backend2", p.name, got)
			}
		}
	}
	if err := r.dp.Suspect(svc.Name, r.at(lb.IPv4, "backend1"), time.Now().Add(time.Hour), 0); err != nil {
		t.Fatal(err)
	}
	if got, _ := r.dial("client1", lab.Request{Proto: lab.UDP, Connected: true, To: netip.MustParseAddrPort(vips[lb.IPv4])}, 6); got["backend2"] != 3 {
		t.Errorf("a suspect was avoided by UDP: %v", got)
	}
	r.noSymptom()
}

// TestGivingUpIsNoSymptom: a client that does not wait tells nothing.
func TestGivingUpIsNoSymptom(t *testing.T) {
	r := newRig(t, nil)
	r.blackhole("backend1")
	r.suspecting(lb.IPv4, "round-robin", longSuspicion, "backend1")
	req := lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(vips[lb.IPv4]), Timeout: 50 * time.Millisecond}
	if got, _ := r.dial("client1", req, 5); got["timeout"] != 5 {
		t.Fatalf("%v, want 5 that time out", got)
	}
	if r.suspected(lb.IPv4, "backend1") {
		t.Error("the backend is suspect")
	}
	r.noSymptom()
}
