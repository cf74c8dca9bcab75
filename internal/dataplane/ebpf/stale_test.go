// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
	"github.com/lbproxy/lbproxy/internal/netns"
)

const (
	staleVIP4 = "10.96.0.53:53"
	staleVIP6 = "[fd00:10:96::53]:53"
	keptVIP4  = "10.96.0.54:53"
)

// dns serves the VIPs by UDP from hosts.
func (r *rig) dns(hosts ...string) []*dataplane.Service {
	return []*dataplane.Service{
		r.svc("dns", lb.IPv4, lb.UDP, "round-robin", r.pods(lb.IPv4, hosts...),
			frontend(lb.ClusterIP, lb.UDP, staleVIP4, lb.MasqueradeOffCluster)),
		r.svc("dns", lb.IPv6, lb.UDP, "round-robin", r.pods(lb.IPv6, hosts...),
			frontend(lb.ClusterIP, lb.UDP, staleVIP6, lb.MasqueradeOffCluster)),
	}
}

// liveIs waits until as many connections are counted as open; a recount agrees.
func (r *rig) liveIs(what string, want uint64) {
	r.t.Helper()
	r.eventually(fmt.Sprintf("%s: %d connections are open", what, want), func() bool {
		opened, closed, _ := r.totals()
		return opened-closed == want
	})
	r.recountIsExact(what)
}

// TestStaleUDP removes a backend: in two pods and on the node, by IPv4, IPv6 and IPv4
// from an AF_INET6 socket, connected sockets to it get an error, and another backend
// when they connect again. Sockets to others, and unconnected ones, notice nothing.
func TestStaleUDP(t *testing.T) {
	r := newRig(t, nil)
	if _, err := r.lab.AddPod(lab.PodSpec{Name: "client3"}); err != nil {
		t.Fatal(err)
	}
	k := r.killer()
	kept := r.svc("kept", lb.IPv4, lb.UDP, "round-robin", r.pods(lb.IPv4, "backend1", "backend2"),
		frontend(lb.ClusterIP, lb.UDP, keptVIP4, lb.MasqueradeOffCluster))
	r.sync(dataplane.Delta{Full: true, Put: append(r.dns("backend1"), kept)})
	hosts := []string{"client1", "client3", lab.Node}
	const n = 3
	var doomed []*client
	var untouched []*lab.Conn
	for _, h := range hosts {
		for _, to := range []string{staleVIP4, staleVIP6, "[::ffff:10.96.0.53]:53"} {
			c := r.startClient(h, "doomed", to, n)
			c.ready()
			doomed = append(doomed, c)
		}
		untouched = append(untouched, r.open(h, lab.UDP, keptVIP4), r.open(h, lab.UDP, keptVIP4))
	}
	vip := netip.MustParseAddrPort(staleVIP4)
	loose, err := r.lab.Host("client1").OpenUDP(t.Context(), lab.Request{To: vip})
	if err != nil {
		t.Fatal(err)
	}
	before := loose.Exchange(t.Context(), vip, nil)
	sockets := uint64(n*len(doomed) + len(untouched) + 1)
	r.liveIs("all are connected", sockets)

	r.kill(k)
	for _, c := range untouched {
		r.ping(c, "nothing has left")
	}
	r.sync(dataplane.Delta{Put: r.dns("backend2")})
	for _, c := range doomed {
		c.next()
	}
	r.liveIs("their connections have ended, and the flow", uint64(len(untouched)))
	for _, c := range doomed {
		c.next()
	}
	for _, c := range untouched {
		r.ping(c, "its backend stays")
	}
	after := loose.Exchange(t.Context(), vip, nil)
	if before.Backend != "backend1" || after.Backend != "backend2" || after.Local != before.Local {
		t.Errorf("the unconnected socket got %s at %s, then %s at %s; want backend1, then backend2 at the same",
			before.Backend, before.Local, after.Backend, after.Local)
	}
	r.liveIs("they are connected again", sockets)
	r.kill(k)
	for _, c := range untouched {
		r.ping(c, "nothing has left since")
	}
}

// TestDrainingUDP: a backend that has left and is not gone keeps its sockets.
func TestDrainingUDP(t *testing.T) {
	r := newRig(t, nil)
	k := r.killer()
	r.sync(dataplane.Delta{Full: true, Put: r.dns("backend1")})
	c := r.open("client1", lab.UDP, staleVIP4)
	next := r.dns("backend2")
	next[0].Terms.Draining = []netip.AddrPort{r.pods(lb.IPv4, "backend1")[0].Addr}
	r.sync(dataplane.Delta{Put: next})
	r.kill(k)
	r.ping(c, "its backend drains")
	r.sync(dataplane.Delta{Put: r.dns("backend2")})
	r.kill(k)
	r.broken(c, "its backend is gone")
}

// broken fails unless a connection was ended.
func (r *rig) broken(c *lab.Conn, what string) {
	r.t.Helper()
	if err := c.Ping(r.t.Context()); err == nil {
		r.t.Errorf("%s: the connection goes on", what)
	}
}

// TestStaleFrontends takes away what sockets were connected through: the Service, its
// port, its NodePort, or the address, which another Service takes over.
func TestStaleFrontends(t *testing.T) {
	r := newRig(t, nil)
	k := r.killer()
	backends := r.pods(lb.IPv4, "backend1")
	serve := func(name string, at ...string) *dataplane.Service {
		var fes []lb.Frontend
		for _, a := range at {
			kind := lb.ClusterIP
			if netip.MustParseAddrPort(a).Addr().IsUnspecified() {
				kind = lb.NodePort
			}
			fes = append(fes, frontend(kind, lb.UDP, a, lb.MasqueradeOffCluster))
		}
		return r.svc(name, lb.IPv4, lb.UDP, "random", backends, fes...)
	}
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{
		serve("kept", "10.96.0.1:53", "0.0.0.0:30053"),
		serve("deleted", "10.96.0.2:53"),
		serve("moved", "10.96.0.3:53", "10.96.0.3:54", "0.0.0.0:30054"),
		serve("lost", "10.96.0.4:53", "10.96.0.5:53"),
		serve("winner", "10.96.0.6:53"),
	}})
	type held struct {
		from, to string
		conn     *lab.Conn
		broken   bool
	}
	node4 := lab.NodeAddr4.String()
	all := []held{
		{"client1", "10.96.0.1:53", nil, false},
		{"client1", node4 + ":30053", nil, false},
		{lab.Node, node4 + ":30053", nil, false},
		{lab.Node, "127.0.0.1:30053", nil, false},
		{lab.Node, "0.0.0.0:30053", nil, false},
		{"client1", "10.96.0.2:53", nil, true},
		{lab.Node, "10.96.0.2:53", nil, true},
		{"client1", "10.96.0.3:53", nil, true},
		{"client1", "10.96.0.3:54", nil, false},
		{"client1", node4 + ":30054", nil, true},
		{lab.Node, "127.0.0.1:30054", nil, true},
		{lab.Node, "0.0.0.0:30054", nil, true},
		{"client1", "10.96.0.4:53", nil, false},
		{"client1", "10.96.0.5:53", nil, true},
		{"client1", "10.96.0.6:53", nil, false},
	}
	for i := range all {
		all[i].conn = r.open(all[i].from, lab.UDP, all[i].to)
	}
	r.kill(k)
	for _, h := range all {
		r.ping(h.conn, h.to+" before the change")
	}
	r.sync(dataplane.Delta{
		Put: []*dataplane.Service{
			serve("moved", "10.96.0.3:54", "0.0.0.0:30055"),
			serve("lost", "10.96.0.4:53"),
			serve("winner", "10.96.0.5:53", "10.96.0.6:53"),
		},
		Delete: []lb.ServiceName{serve("deleted").Name},
	})
	r.kill(k)
	open := uint64(0)
	for _, h := range all {
		what := fmt.Sprintf("%s from %s", h.to, h.from)
		if h.broken {
			r.broken(h.conn, what)
		} else {
			r.ping(h.conn, what)
			open++
		}
	}
	r.liveIs("what is left", open)
}

// TestStaleTCP resets connections to a backend only where the Service wants it.
func TestStaleTCP(t *testing.T) {
	r := newRig(t, nil)
	k := r.killer()
	world := func(reset bool, hosts ...string) dataplane.Delta {
		d := dataplane.Delta{Put: []*dataplane.Service{
			r.svc("web", lb.IPv4, lb.TCP, "random", r.pods(lb.IPv4, hosts...),
				frontend(lb.ClusterIP, lb.TCP, "10.96.0.1:80", lb.MasqueradeOffCluster)),
			r.svc("web", lb.IPv6, lb.TCP, "random", r.pods(lb.IPv6, hosts...),
				frontend(lb.ClusterIP, lb.TCP, "[fd00:10:96::1]:80", lb.MasqueradeOffCluster)),
		}}
		for _, svc := range d.Put {
			svc.Terms.Reset = reset
		}
		return d
	}
	r.sync(world(false, "backend1"))
	var old []*lab.Conn
	for _, h := range []string{"client1", lab.Node} {
		for _, to := range []string{"10.96.0.1:80", "[fd00:10:96::1]:80", "[::ffff:10.96.0.1]:80"} {
			old = append(old, r.open(h, lab.TCP, to))
		}
	}
	r.sync(world(false, "backend2"))
	young := r.open("client1", lab.TCP, "10.96.0.1:80")
	r.kill(k)
	for _, c := range old {
		r.ping(c, "the Service does not want it reset")
	}
	r.liveIs("nothing has ended", uint64(len(old))+1)
	r.sync(world(true, "backend2"))
	r.kill(k)
	for _, c := range old {
		r.broken(c, "the Service wants it reset")
	}
	r.ping(young, "its backend stays")
	r.liveIs("only one is left", 1)
}

// TestStaleRivals destroys sockets that share all of address and port: the kernel
// finds one at a time.
func TestStaleRivals(t *testing.T) {
	r := newRig(t, nil)
	r.sync(dataplane.Delta{Full: true, Put: r.dns("backend1")})
	c := r.startClient("client1", "rivals", staleVIP4, 5)
	c.ready()
	r.sync(dataplane.Delta{Put: r.dns("backend2")})
	c.next()
	r.liveIs("all are destroyed", 0)
}

// TestStaleElsewhere: a socket of another network namespace with the same addresses and
// ports, and one of the same namespace that never saw a VIP, are not touched.
func TestStaleElsewhere(t *testing.T) {
	r := newRig(t, nil)
	k := r.killer()
	client, err := r.lab.AddPod(lab.PodSpec{Name: "client3"})
	if err != nil {
		t.Fatal(err)
	}
	twin, err := r.lab.AddPod(lab.PodSpec{Name: "twin", Unhooked: true})
	if err != nil {
		t.Fatal(err)
	}
	r.sync(dataplane.Delta{Full: true, Put: r.dns("backend1")})
	from := netip.AddrPortFrom(client.Addr4, 7777)
	doomed, res := client.Open(t.Context(), lab.Request{Proto: lab.UDP, To: netip.MustParseAddrPort(staleVIP4), From: from})
	if res.Kind != lab.OK {
		t.Fatal(res.Err)
	}
	backend := r.pods(lb.IPv4, "backend1")[0].Addr
	fds := map[string]int{}
	for name, ends := range map[string]struct {
		host *lab.Host
		from netip.AddrPort
	}{
		"the same ends elsewhere":      {twin, from},
		"the same peer, without a VIP": {client, netip.AddrPortFrom(client.Addr4, 7778)},
	} {
		err := ends.host.Do(func() (err error) {
			fds[name], err = bareSocket(ends.from, backend)
			return err
		})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		defer unix.Close(fds[name])
	}
	r.sync(dataplane.Delta{Put: r.dns("backend2")})
	r.kill(k)
	r.broken(doomed, "its backend is gone")
	for name, fd := range fds {
		peerIs(t, name, fd, backend)
	}
}

// TestStaleLookalike: of two sockets of one namespace with the same ends the kernel
// finds one. If that is not the stale one, it is spared, and the other stays with an
// error until it is found.
func TestStaleLookalike(t *testing.T) {
	r := newRig(t, nil)
	k := r.killer()
	client := r.lab.Host("client1")
	r.sync(dataplane.Delta{Full: true, Put: r.dns("backend1")})
	from := netip.AddrPortFrom(client.Addr4, 7777)
	doomed, res := client.Open(t.Context(), lab.Request{Proto: lab.UDP, To: netip.MustParseAddrPort(staleVIP4), From: from})
	if res.Kind != lab.OK {
		t.Fatal(res.Err)
	}
	backend := r.pods(lb.IPv4, "backend1")[0].Addr
	fd := -1
	err := client.Do(func() (err error) {
		fd, err = bareSocket(from, backend)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	r.sync(dataplane.Delta{Put: r.dns("backend2")})
	_, err = k.killStale(t.Context())
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "UDP "+from.String()) {
		t.Errorf("error %v, want %v of a socket from %s", err, unix.ENOENT, from)
	}
	peerIs(t, "the one that is not stale", fd, backend)
	unix.Close(fd)
	r.kill(k)
	r.broken(doomed, "its backend is gone")
}

// bareSocket connects a UDP socket outside of all hooks, from an address that the
// namespace need not have.
func bareSocket(from, to netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(from))
	}
	if err == nil {
		err = unix.Connect(fd, sockaddr(to))
	}
	return fd, err
}

// TestStaleExile finds a network namespace that is mounted nowhere by its process.
func TestStaleExile(t *testing.T) {
	r := newRig(t, nil)
	r.sync(dataplane.Delta{Full: true, Put: r.dns("backend1")})
	c := r.startClient("client1", "exile", staleVIP4, 2)
	c.ready()
	r.liveIs("they are connected", 2)
	r.sync(dataplane.Delta{Put: r.dns("backend2")})
	c.next()
	r.liveIs("all are destroyed", 0)
}

// TestStaleMembers: the kernel tells which process is in a namespace, so that not all
// of them need to be looked at.
func TestStaleMembers(t *testing.T) {
	r := newRig(t, nil)
	k := r.killer()
	start := time.Now()
	pids, err := k.members()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the kernel told of %d namespaces in %v", len(pids), time.Since(start))
	for _, h := range []string{"client1", lab.Node} {
		var inode uint32
		err := r.lab.Host(h).Do(func() error {
			n, err := netns.Current()
			if err != nil {
				return err
			}
			inode = n.Inode()
			return n.Close()
		})
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pids[inode]), &st); err != nil || st.Ino != uint64(inode) {
			t.Errorf("%s: process %d is in network namespace %d (%v), want %d", h, pids[inode], st.Ino, err, inode)
		}
	}
}

// TestStaleHermit: sockets whose network namespace is nowhere to be found stay, and
// the error says so.
func TestStaleHermit(t *testing.T) {
	r := newRig(t, nil)
	k := r.killer()
	r.sync(dataplane.Delta{Full: true, Put: r.dns("backend1")})
	c := r.startClient("client1", "hermit", staleVIP4, 2)
	c.ready()
	doomed := r.open("client1", lab.UDP, staleVIP4)
	r.sync(dataplane.Delta{Put: r.dns("backend2")})
	_, err := k.killStale(t.Context())
	if err == nil || !strings.Contains(err.Error(), "2 sockets") || !strings.Contains(err.Error(), "UDP 10.250.0.1:") {
		t.Errorf("error %v, want one that names 2 sockets", err)
	}
	r.broken(doomed, "it can be found")
	c.kill()
	if found, _, err := k.find(); err != nil || len(found) != 0 {
		t.Errorf("closed sockets are found: %v, error %v", found, err)
	}
}

// TestStaleCrowd destroys 1,000 sockets in 20 network namespaces.
func TestStaleCrowd(t *testing.T) {
	const pods, each = 20, 50
	r := newRig(t, nil)
	k := r.killer()
	r.sync(dataplane.Delta{Full: true, Put: r.dns("backend1")})
	clients := make([]*client, pods)
	for i := range clients {
		name := fmt.Sprintf("crowd%d", i)
		if _, err := r.lab.AddPod(lab.PodSpec{Name: name}); err != nil {
			t.Fatal(err)
		}
		clients[i] = r.startClient(name, "doomed", staleVIP4, each)
	}
	for _, c := range clients {
		c.ready()
	}
	r.sync(dataplane.Delta{Put: r.dns("backend2")})
	start := time.Now()
	r.eventually("no socket is stale", func() bool {
		found, _, err := k.find()
		return err == nil && len(found) == 0
	})
	t.Logf("%d sockets in %d network namespaces were destroyed within %v of the Sync", pods*each, pods, time.Since(start))
	for _, c := range clients {
		c.next()
	}
	r.liveIs("all are destroyed", 0)
}
