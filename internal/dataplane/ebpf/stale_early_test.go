// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// keysOf are the frontends of Services.
func keysOf(svcs ...*dataplane.Service) (keys []lb.FrontendKey) {
	for _, s := range svcs {
		for _, f := range s.Frontends {
			keys = append(keys, f.FrontendKey)
		}
	}
	return keys
}

// peerIs fails unless a socket is connected to an address.
func peerIs(t *testing.T, what string, fd int, want netip.AddrPort) {
	t.Helper()
	sa, err := unix.Getpeername(fd)
	if in, ok := sa.(*unix.SockaddrInet4); err != nil || !ok || netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port)) != want {
		t.Errorf("%s: peer %v, error %v, want %s", what, sa, err, want)
	}
}

// TestEarlyUDP: processes of the node that connected before there was a Service get an
// error when there is one, and its backend when they connect again.
func TestEarlyUDP(t *testing.T) {
	r := newRig(t, nil)
	k := r.killer()
	node4, node6 := lab.NodeAddr4.String(), lab.NodeAddr6.String()
	ahead := r.dns("backend1")
	ahead[0].Frontends = append(ahead[0].Frontends,
		frontend(lb.NodePort, lb.UDP, "0.0.0.0:30053", lb.MasqueradeOffCluster))
	ahead[1].Frontends = append(ahead[1].Frontends,
		frontend(lb.NodePort, lb.UDP, "[::]:30053", lb.MasqueradeOffCluster))
	var early []*client
	for _, to := range []string{
		staleVIP4, staleVIP6, "[::ffff:10.96.0.53]:53",
		node4 + ":30053", "[" + node6 + "]:30053", "127.0.0.1:30053", "[::1]:30053",
	} {
		c := r.startClient(lab.Node, "early", to, 2)
		c.ready()
		early = append(early, c)
	}
	shadowed := netip.AddrPortFrom(lab.NodeAddr4, backendPort)
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{
		r.svc("own", lb.IPv4, lb.UDP, "random", r.pods(lb.IPv4, lab.Node),
			frontend(lb.ClusterIP, lb.UDP, "10.96.0.60:53", lb.MasqueradeOffCluster)),
	}})
	assigned := r.open(lab.Node, lab.UDP, "10.96.0.60:53") // to where another Service will be
	spared := map[netip.AddrPort]int{}
	for _, to := range []string{"10.96.0.53:54", "10.96.0.99:53", "172.30.0.12:30053"} {
		var fd int
		addr := netip.MustParseAddrPort(to)
		r.onNode(func() (err error) {
			fd, err = dialFD(addr, unix.SOCK_DGRAM)
			return err
		})
		defer unix.Close(fd)
		spared[addr] = fd
	}
	pod := -1
	vip := netip.MustParseAddrPort(staleVIP4)
	err := r.lab.Host("client1").Do(func() (err error) {
		pod, err = dialFD(vip, unix.SOCK_DGRAM)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pod)

	shadow := r.svc("shadow", lb.IPv4, lb.UDP, "random", r.pods(lb.IPv4, "backend1"),
		frontend(lb.ExternalIP, lb.UDP, shadowed.String(), lb.MasqueradeOffCluster))
	r.sync(dataplane.Delta{Put: append(ahead, shadow)})
	gone := lb.FrontendKey{Addr: netip.MustParseAddrPort("10.96.0.99:53"), Proto: lb.UDP} // it was there when it was noted
	n, err := k.killEarly(t.Context(), append(keysOf(append(ahead, shadow)...), gone))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d sockets were destroyed", n)
	for _, c := range early {
		c.next()
	}
	r.ping(assigned, "it was led to a backend at the address of a VIP")
	for to, fd := range spared {
		peerIs(t, "no frontend", fd, to)
	}
	peerIs(t, "in a pod", pod, vip)
	r.liveIs("the early ones are connected again", uint64(2*len(early)+1))
}

// TestEarlyOfOnePort asks the kernel for the sockets to one port only.
func TestEarlyOfOnePort(t *testing.T) {
	r := newRig(t, nil)
	k := r.killer()
	c := r.startClient(lab.Node, "early", staleVIP4, 3)
	c.ready()
	svc := r.dns("backend1")[0]
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc}})
	tcp := svc.Frontends[0].FrontendKey
	tcp.Proto = lb.TCP
	if n, err := k.killEarly(t.Context(), []lb.FrontendKey{tcp}); n != 0 || err != nil {
		t.Errorf("TCP: destroyed %d, error %v, want nothing", n, err)
	}
	if _, err := k.killEarly(t.Context(), keysOf(svc)); err != nil {
		t.Fatal(err)
	}
	c.next()
	r.liveIs("connected again", 3)
}

// TestStaleUseless: a kernel that destroys no sockets is told of once.
func TestStaleUseless(t *testing.T) {
	refusal := errors.New("refused")
	k := &staleKiller{useless: true, refusal: refusal}
	for i, want := range []error{refusal, nil, nil} {
		if n, err := k.killStale(t.Context()); n != 0 || !errors.Is(err, want) {
			t.Errorf("call %d: destroyed %d, error %v, want 0, %v", i, n, err, want)
		}
	}
}
