// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// assignment is a socket's made-up state.
type assignment struct {
	vip     string // "": it has none
	backend lbBackendState
	old     bool  // its backend's id is another's by now
	count   uint8 // enum sock_count
}

// What a pass says of a socket.
const (
	spared = iota
	destroyed
	lookAgain
)

const (
	sockOpen   = 1 // enum sock_count
	sockClosed = 2
)

// TestStaleRule gives sockets every kind of assignment, and looks whether they are
// stale.
func TestStaleRule(t *testing.T) {
	r := newRig(t, nil)
	k := r.killer()
	backends := r.pods(lb.IPv4, "backend1")
	for _, p := range []lb.Proto{lb.TCP, lb.UDP} {
		r.sync(dataplane.Delta{Put: []*dataplane.Service{
			r.svc("rule", lb.IPv4, p, "random", backends,
				frontend(lb.ClusterIP, p, "10.96.0.1:53", lb.MasqueradeOffCluster),
				frontend(lb.NodePort, p, "0.0.0.0:30053", lb.MasqueradeOffCluster)),
			r.svc("other", lb.IPv4, p, "random", r.pods(lb.IPv4, "backend2"),
				frontend(lb.ClusterIP, p, "10.96.0.2:53", lb.MasqueradeOffCluster),
				frontend(lb.NodePort, p, "0.0.0.0:30054", lb.MasqueradeOffCluster)),
		}})
	}
	const vip = "10.96.0.1:53"
	const active, leaving = lbBackendStateBACKEND_ACTIVE, lbBackendStateBACKEND_LEAVING
	const gone, reset, free = lbBackendStateBACKEND_GONE, lbBackendStateBACKEND_RESET, lbBackendStateBACKEND_FREE
	for _, tc := range []struct {
		name      string
		a         assignment
		connected bool
		udp, tcp  int
	}{
		{"active", assignment{vip, active, false, 0}, true, spared, spared},
		{"leaving", assignment{vip, leaving, false, 0}, true, spared, spared},
		{"gone", assignment{vip, gone, false, 0}, true, destroyed, spared},
		{"reset", assignment{vip, reset, false, 0}, true, destroyed, destroyed},
		{"free", assignment{vip, free, false, 0}, true, destroyed, spared},
		{"another is active", assignment{vip, active, true, 0}, true, destroyed, spared},
		{"another is reset", assignment{vip, reset, true, 0}, true, destroyed, spared},
		{"no assignment", assignment{"", reset, false, 0}, true, spared, spared},
		{"no frontend", assignment{"10.96.0.3:53", active, false, 0}, true, destroyed, spared},
		{"no frontend at the port", assignment{"10.96.0.1:54", active, false, 0}, true, destroyed, spared},
		{"another Service's frontend", assignment{"10.96.0.2:53", active, false, 0}, true, destroyed, spared},
		{"NodePort", assignment{"172.30.0.11:30053", active, false, 0}, true, spared, spared},
		{"NodePort at the second address", assignment{"172.30.1.11:30053", active, false, 0}, true, spared, spared},
		{"NodePort on loopback", assignment{"127.0.0.5:30053", active, false, 0}, true, spared, spared},
		{"NodePort, unspecified address", assignment{"0.0.0.0:30053", active, false, 0}, true, spared, spared},
		{"NodePort elsewhere", assignment{"172.30.0.12:30053", active, false, 0}, true, destroyed, spared},
		{"another Service's NodePort", assignment{"172.30.0.11:30054", active, false, 0}, true, destroyed, spared},
		{"about to connect", assignment{vip, reset, false, sockOpen}, false, lookAgain, lookAgain},
		{"about to connect, active", assignment{vip, active, false, sockOpen}, false, spared, spared},
		{"not connected", assignment{vip, reset, false, sockClosed}, false, spared, spared},
	} {
		for proto, want := range map[lb.Proto]int{lb.UDP: tc.udp, lb.TCP: tc.tcp} {
			var got int
			// About to connect is who was asked lately. The Dataplane's own killer, which looks
			// after each Sync, may destroy a socket before this one sees it.
			r.within(patience, tc.name, func() bool {
				got = r.ruling(k, proto, backends[0].Addr, tc.a, tc.connected)
				return got == want || tc.connected && want == spared
			})
			if got != want {
				t.Errorf("%s: %s: %d, want %d", proto, tc.name, got, want)
			}
		}
	}
}

// ruling makes a socket with an assignment to a backend and says what a pass does.
func (r *rig) ruling(k *staleKiller, p lb.Proto, to netip.AddrPort, a assignment, connected bool) (got int) {
	r.t.Helper()
	kind := unix.SOCK_DGRAM
	if p == lb.TCP {
		kind = unix.SOCK_STREAM
	}
	fd := -1
	err := r.lab.Host("client1").Do(func() (err error) {
		if connected {
			fd, err = dialFD(to, kind)
		} else {
			fd, err = unix.Socket(unix.AF_INET, kind, 0)
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	defer unix.Close(fd)
	told, cookie := r.tellOf(k, fd, p, a)
	for _, s := range told {
		switch {
		case s.Cookie != cookie: // one of before, which the kernel still has
		case staleStaleAction(s.Action) == staleStaleActionSTALE_AGAIN:
			return lookAgain
		default:
			return destroyed
		}
	}
	return spared
}

// tellOf gives a socket an assignment and returns what a pass tells, and the socket's
// cookie.
func (r *rig) tellOf(k *staleKiller, fd int, p lb.Proto, a assignment) ([]staleStaleSock, uint64) {
	r.t.Helper()
	r.dp.mu.Lock()
	defer r.dp.mu.Unlock()
	svc := r.dp.services[lb.ServiceName{Object: lb.Object{Namespace: "default", Name: "rule"}, Proto: p, Family: lb.IPv4}]
	id := r.dp.maps.pool(svc.id, lb.ScopeCluster)[0].Backend
	r.dp.setState(id, a.backend)
	defer r.dp.setState(id, lbBackendStateBACKEND_ACTIVE)
	st := lbSockState{Backend: id, Gen: r.dp.maps.backends[id].Gen, Count: uint32(a.count), Opened: uint64(monotonic())}
	if a.old {
		st.Gen--
	}
	if a.vip != "" {
		key := frontendKeyOf(lb.FrontendKey{Addr: netip.MustParseAddrPort(a.vip)})
		st.Vip, st.VipPort = key.Addr, key.Port
	}
	if err := r.dp.maps.byName[lbMapSockStates].Update(uint32(fd), &st, ebpf.UpdateAny); err != nil {
		r.t.Fatal(err)
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		r.t.Fatal(err)
	}
	told, err := iterate[staleStaleSock](k, staleProgLbStale)
	if err != nil {
		r.t.Fatal(err)
	}
	return told, cookie
}

// TestStaleEnds: a socket is told with the ends that the kernel has, and IPv4 ones if
// it talks IPv4.
func TestStaleEnds(t *testing.T) {
	r := newRig(t, nil)
	k := r.killer()
	backends := r.pods(lb.IPv4, "backend1")
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{
		r.svc("rule", lb.IPv4, lb.UDP, "random", backends,
			frontend(lb.ClusterIP, lb.UDP, "10.96.0.1:53", lb.MasqueradeOffCluster)),
	}})
	client, v4, v6 := r.lab.Host("client1"), backends[0].Addr, r.pods(lb.IPv6, "backend1")[0].Addr
	mapped := netip.AddrPortFrom(netip.AddrFrom16(v4.Addr().As16()), v4.Port())
	for _, tc := range []struct {
		to, peer netip.AddrPort
		local    netip.Addr
	}{
		{v4, v4, client.Addr4},
		{v6, v6, client.Addr6},
		{mapped, v4, client.Addr4},
	} {
		// The Dataplane's own killer, which looks after each Sync, may be first: then once more.
		r.within(patience, tc.to.String()+" is told", func() bool {
			fd, port := -1, uint16(4000)
			err := client.Do(func() (err error) {
				var sa unix.Sockaddr
				if fd, sa, err = patient(tc.to, unix.SOCK_DGRAM); err != nil {
					return err
				}
				var at unix.Sockaddr = &unix.SockaddrInet6{Port: int(port)}
				if tc.to.Addr().Is4() {
					at = &unix.SockaddrInet4{Port: int(port)}
				}
				if err := unix.Bind(fd, at); err != nil {
					return err
				}
				return unix.Connect(fd, sa)
			})
			if err != nil {
				t.Fatal(err)
			}
			told, cookie := r.tellOf(k, fd, lb.UDP, assignment{"10.96.0.1:53", lbBackendStateBACKEND_GONE, false, 0})
			unix.Close(fd)
			found := false
			for _, s := range told {
				if s.Cookie != cookie {
					continue
				}
				found = true
				local, peer := addrPortOf(lbAddr(s.Local), s.LocalPort), addrPortOf(lbAddr(s.Peer), s.PeerPort)
				if local != netip.AddrPortFrom(tc.local, port) || peer != tc.peer {
					t.Errorf("connected to %s: told as %s -> %s, want %s:%d -> %s", tc.to, local, peer, tc.local, port, tc.peer)
				}
			}
			return found
		})
	}
}
