// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// vips of one Service, by family.
var vips = map[lb.Family]string{lb.IPv4: "172.32.0.9:80", lb.IPv6: "[fd00:32::9]:80"}

// serveVIPs programs a load balancer IP of each family for proto.
func (r *rig) serveVIPs(proto lb.Proto, hosts ...string) {
	r.t.Helper()
	var d dataplane.Delta
	for f, vip := range vips {
		d.Put = append(d.Put, r.svc("web", f, proto, "round-robin", r.pods(f, hosts...),
			frontend(lb.LoadBalancer, proto, vip, lb.MasqueradeAlways)))
	}
	r.sync(d)
}

// narrow is labtest.Narrow.
func (r *rig) narrow(host, device string, mtu int) {
	r.t.Helper()
	labtest.Narrow(r.t, r.lab.Host(host), device, mtu)
}

// open opens a connection that is kept.
func (r *rig) open(from, proto, to string) *lab.Conn {
	r.t.Helper()
	c, res := r.lab.Host(from).Open(r.t.Context(), lab.Request{Proto: proto, To: netip.MustParseAddrPort(to)})
	if res.Kind != lab.OK {
		r.t.Fatalf("open %s from %s to %s: %s %s", proto, from, to, res.Kind, res.Err)
	}
	return c
}

func (r *rig) ping(c *lab.Conn, what string) {
	r.t.Helper()
	if err := c.Ping(r.t.Context()); err != nil {
		r.t.Errorf("%s: %v", what, err)
	}
}

// TestPathMTU sends a megabyte each way through a VIP over a link in the middle
// that is narrower than both ends: only translated ICMP errors get it through.
func TestPathMTU(t *testing.T) {
	for _, tc := range []struct{ name, backend, host, device, from string }{
		{"the next node reports it", "remote1", lab.Node2, "v-remote1", lab.Outside},
		{"the next node reports it to a pod", "remote1", lab.Node2, "v-remote1", "client2"},
		{"this node reports it", "backend1", lab.Node, "v-backend1", lab.Outside},
		{"this node reports it to a pod", "backend1", lab.Node, "v-backend1", "client2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, nil)
			r.serveVIPs(lb.TCP, tc.backend)
			r.narrow(tc.host, tc.device, 1300)
			for f, vip := range vips {
				c := r.open(tc.from, lab.TCP, vip)
				if err := c.Bulk(t.Context(), 1<<20); err != nil {
					t.Errorf("%s: %v", f, err)
				}
			}
		})
	}
}

// TestPathMTUTowardsClient narrows the way to the client: the error concerns the
// backend's packets, quotes the VIP, and has to reach the backend.
func TestPathMTUTowardsClient(t *testing.T) {
	r := newRig(t, nil)
	r.serveVIPs(lb.TCP, "remote1")
	r.narrow(lab.Node, "v-client2", 1300)
	for f, vip := range vips {
		c := r.open("client2", lab.TCP, vip)
		if err := c.Bulk(t.Context(), 1<<20); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
}

// TestFragments sends datagrams that do not fit a packet, both ways.
func TestFragments(t *testing.T) {
	r := newRig(t, nil)
	r.serveVIPs(lb.UDP, "backend1", "remote1")
	payload := bytes.Repeat([]byte("fragment"), 1000)
	for f, vip := range vips {
		for _, from := range []string{lab.Outside, "client2", "client1"} {
			req := lab.Request{Proto: lab.UDP, To: netip.MustParseAddrPort(vip), Payload: payload, Connected: true}
			got, rs := r.dial(from, req, 4)
			if got["backend1"] != 2 || got["remote1"] != 2 {
				t.Errorf("%s from %s: %v %s, want 2 answers of each", f, from, got, rs[0].Err)
			}
		}
	}
}

// TestSamePortToTwoVIPs opens two connections from one source port to two VIPs
// that have the same backend: behind the VIP they would be one.
func TestSamePortToTwoVIPs(t *testing.T) {
	r := newRig(t, nil)
	to := []string{"10.96.0.1:80", "10.96.0.2:80", "10.96.0.3:80"}
	var d dataplane.Delta
	for _, vip := range to {
		d.Put = append(d.Put, r.svc("s"+vip[8:9], lb.IPv4, lb.TCP, "random", r.pods(lb.IPv4, "backend1"),
			frontend(lb.ClusterIP, lb.TCP, vip, lb.MasqueradeOffCluster)))
	}
	r.sync(d)
	var conns []*lab.Conn
	for _, vip := range to {
		c, res := r.lab.Host("client2").Open(t.Context(), lab.Request{
			Proto: lab.TCP,
			To:    netip.MustParseAddrPort(vip),
			From:  netip.AddrPortFrom(r.lab.Host("client2").Addr4, 40001),
		})
		if res.Kind != lab.OK {
			t.Fatalf("open %s: %s %s", vip, res.Kind, res.Err)
		}
		if res.Seen.Addr() != r.lab.Host("client2").Addr4 {
			t.Errorf("%s: the backend saw %s, want the client's address", vip, res.Seen)
		}
		conns = append(conns, c)
	}
	for i, c := range conns {
		r.ping(c, to[i])
	}
}

// TestSamePortToVIPAndBackend uses one source port for a VIP and for its backend
// itself.
func TestSamePortToVIPAndBackend(t *testing.T) {
	r := newRig(t, nil)
	r.sync(dataplane.Delta{Put: []*dataplane.Service{
		r.svc("web", lb.IPv4, lb.TCP, "random", r.pods(lb.IPv4, "backend1"),
			frontend(lb.ClusterIP, lb.TCP, "10.96.0.1:80", lb.MasqueradeOffCluster))}})
	pod := netip.AddrPortFrom(r.lab.Host("backend1").Addr4, backendPort)
	var conns []*lab.Conn
	for _, to := range []netip.AddrPort{netip.MustParseAddrPort("10.96.0.1:80"), pod} {
		c, res := r.lab.Host("client2").Open(t.Context(), lab.Request{
			Proto: lab.TCP, To: to, From: netip.AddrPortFrom(r.lab.Host("client2").Addr4, 40001)})
		if res.Kind != lab.OK || res.Peer != to {
			t.Fatalf("open %s: %s %s, peer %s", to, res.Kind, res.Err, res.Peer)
		}
		conns = append(conns, c)
	}
	for _, c := range conns {
		r.ping(c, "both at once")
	}
}

// TestSamePortToVIPAndBackendUDP uses one socket for a VIP and for its backend itself, in
// either order: each answer comes from who was asked. A client that takes a port again
// soon after another socket's end looks the same.
func TestSamePortToVIPAndBackendUDP(t *testing.T) {
	r := newRig(t, nil)
	vip := netip.MustParseAddrPort("10.96.0.1:53")
	pod := netip.AddrPortFrom(r.lab.Host("backend1").Addr4, backendPort)
	for _, policy := range []lb.Masquerade{lb.MasqueradeOffCluster, lb.MasqueradeAlways} {
		r.sync(dataplane.Delta{Put: []*dataplane.Service{
			r.svc("dns", lb.IPv4, lb.UDP, "random", r.pods(lb.IPv4, "backend1"), frontend(lb.ClusterIP, lb.UDP, vip.String(), policy))}})
		for _, order := range [][]netip.AddrPort{{vip, pod}, {pod, vip}} {
			sock, err := r.lab.Host("client2").OpenUDP(t.Context(), lab.Request{To: vip})
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				r.exchange(sock, order[0])
				r.exchange(sock, order[1])
			}
		}
	}
}

// TestUDPSocketWithTwoVIPs exchanges with two VIPs of one backend on one socket:
// each answer comes from the VIP that was asked.
func TestUDPSocketWithTwoVIPs(t *testing.T) {
	r := newRig(t, nil)
	to := []netip.AddrPort{netip.MustParseAddrPort("10.96.0.1:53"), netip.MustParseAddrPort("10.96.0.2:53")}
	var d dataplane.Delta
	for i, vip := range to {
		d.Put = append(d.Put, r.svc([]string{"a", "b"}[i], lb.IPv4, lb.UDP, "random", r.pods(lb.IPv4, "backend1"),
			frontend(lb.ClusterIP, lb.UDP, vip.String(), lb.MasqueradeOffCluster)))
	}
	r.sync(d)
	for _, from := range []string{"client1", "client2"} {
		sock, err := r.lab.Host(from).OpenUDP(t.Context(), lab.Request{To: to[0]})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			r.exchange(sock, to[0])
			r.exchange(sock, to[1])
		}
	}
}

// TestUnspecifiedAddressInPod dials the address that means "this host" in a pod:
// the node's NodePorts are not the pod's.
func TestUnspecifiedAddressInPod(t *testing.T) {
	r := newRig(t, nil)
	for f, at := range map[lb.Family]string{lb.IPv4: "0.0.0.0:30080", lb.IPv6: "[::]:30080"} {
		r.sync(dataplane.Delta{Put: []*dataplane.Service{
			r.svc("web", f, lb.TCP, "random", r.pods(f, "backend1"), frontend(lb.NodePort, lb.TCP, at, lb.MasqueradeAlways))}})
		for from, want := range map[string]string{"client1": string(lab.Refused), lab.Node: "backend1"} {
			if got, _ := r.dial(from, lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(at)}, 1); got[want] != 1 {
				t.Errorf("%s dials %s: %v, want %s", from, at, got, want)
			}
		}
	}
}

// TestMappedSocket connects an IPv6 socket to an IPv4 VIP.
func TestMappedSocket(t *testing.T) {
	r := newRig(t, nil)
	r.serveVIPs(lb.TCP, "backend1")
	r.serveVIPs(lb.UDP, "backend1")
	for _, req := range []lab.Request{
		{Proto: lab.TCP},
		{Proto: lab.UDP},
		{Proto: lab.UDP, Connected: true},
	} {
		req.To, req.MappedV6 = netip.MustParseAddrPort(vips[lb.IPv4]), true
		got, rs := r.dial("client1", req, 3)
		if got["backend1"] != 3 || rs[0].Peer != req.To {
			t.Errorf("%s connected=%t: %v %s, peer %s", req.Proto, req.Connected, got, rs[0].Err, rs[0].Peer)
		}
	}
}

// TestUDPFlowKeepsItsBackend exchanges on one socket that does not connect: one
// backend answers while it is there, another one after that.
func TestUDPFlowKeepsItsBackend(t *testing.T) {
	r := newRig(t, nil)
	r.serveVIPs(lb.UDP, "backend1", "backend2", "backend3")
	to := netip.MustParseAddrPort(vips[lb.IPv4])
	for _, from := range []string{"client1", "client2"} {
		sock, err := r.lab.Host(from).OpenUDP(t.Context(), lab.Request{To: to})
		if err != nil {
			t.Fatal(err)
		}
		first := r.exchange(sock, to)
		for range 5 {
			if again := r.exchange(sock, to); again != first {
				t.Errorf("from %s: %s answered after %s", from, again, first)
			}
		}
		rest := without([]string{"backend1", "backend2", "backend3"}, first)
		r.serveVIPs(lb.UDP, rest...)
		if next := r.exchange(sock, to); next == first {
			t.Errorf("from %s: %s answered after it was removed", from, next)
		}
		r.serveVIPs(lb.UDP, "backend1", "backend2", "backend3")
	}
}

// TestMasqueradeAvoidsFrontends masquerades from a range of which a quarter are
// node ports too. A backend answers with sendmsg, which the socket programs
// translate: its answers to such a port would go to the node port's Service.
func TestMasqueradeAvoidsFrontends(t *testing.T) {
	const first, n, calls = 1024, 1024, 64
	l := labtest.NewLab(t, lab.Options{})
	r := &rig{t: t, lab: l, opts: labOptions(t, l)}
	r.onNode(func() error {
		ports := fmt.Sprintf("%d 65535", first+n) // of sockets; what is below is for masquerading
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte(ports), 0)
	})
	labtest.Serve(t, l.Host("backend1"), backendPort)
	r.start()
	any := map[lb.Family]string{lb.IPv4: "0.0.0.0", lb.IPv6: "[::]"}
	for f, vip := range vips {
		var ports []lb.Frontend
		for i := 0; i < n; i += 4 {
			ports = append(ports, frontend(lb.NodePort, lb.UDP, fmt.Sprintf("%s:%d", any[f], first+i), lb.MasqueradeAlways))
		}
		r.sync(dataplane.Delta{Put: []*dataplane.Service{
			r.svc("ports", f, lb.UDP, "round-robin", nil, ports...),
			r.svc("web", f, lb.UDP, "round-robin", r.pods(f, "backend1"),
				frontend(lb.LoadBalancer, lb.UDP, vip, lb.MasqueradeAlways)),
		}})
		req := lab.Request{Proto: lab.UDP, To: netip.MustParseAddrPort(vip), Timeout: patience}
		if got, _ := r.dial(lab.Outside, req, calls); got["backend1"] != calls {
			t.Errorf("%s: %v of %d calls, want all answered by backend1", f, got, calls)
		}
	}
}

func (r *rig) exchange(s *lab.UDPSocket, to netip.AddrPort) string {
	r.t.Helper()
	res := s.Exchange(r.t.Context(), to, nil)
	if res.Kind != lab.OK || res.Peer != to {
		r.t.Errorf("exchange with %s: %s %s, from %s", to, res.Kind, res.Err, res.Peer)
	}
	return res.Backend
}

func without(names []string, name string) (rest []string) {
	for _, n := range names {
		if n != name {
			rest = append(rest, n)
		}
	}
	return rest
}

// TestDevicesComeAndGo makes and removes many devices while traffic flows.
func TestDevicesComeAndGo(t *testing.T) {
	const pairs = 50
	r := newRig(t, nil)
	r.serveVIPs(lb.TCP, "backend1", "backend2")
	r.onNode(func() error { return eachPair(pairs, netlink.LinkAdd) })
	c := r.open(lab.Outside, lab.TCP, vips[lb.IPv4])
	// The kernel waits for a grace period at each attachment: about 10 ms.
	r.within(2*time.Minute, "every device is served", func() bool { return r.devices() > 2*pairs && r.pins() > 4*pairs })
	r.ping(c, "with many devices")
	r.onNode(func() error { return eachPair(pairs, netlink.LinkDel) })
	r.within(time.Minute, "no pins of devices that are gone", func() bool { return r.devices() < 20 && r.pins() < 60 })
	r.ping(c, "after they went")
	if got, _ := r.dial(lab.Outside, lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(vips[lb.IPv4])}, 4); got["backend1"] != 2 {
		t.Errorf("after they went: %v, want 2 answers of each", got)
	}
	h, err := r.lab.AddPod(lab.PodSpec{Name: "late", Node: lab.Node, Unhooked: true,
		Addr4: netip.MustParseAddr("10.244.1.77"), Addr6: netip.MustParseAddr("fd00:10:244:1::77")})
	if err != nil {
		t.Fatal(err)
	}
	r.eventually("a pod that comes later is served", func() bool {
		return h.Dial(t.Context(), lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(vips[lb.IPv4]), Timeout: 100 * time.Millisecond}).Kind == lab.OK
	})
}

func eachPair(n int, f func(netlink.Link) error) error {
	for i := range n {
		name := "many" + string(rune('a'+i/26/26%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i%26))
		err := f(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "p" + name})
		if err != nil {
			return err
		}
	}
	return nil
}

// TestOpenRefuses names what is wrong when the Dataplane cannot run.
func TestOpenRefuses(t *testing.T) {
	r := newRig(t, nil)
	for _, tc := range []struct {
		name string
		edit func(*Options)
		want error
	}{
		{"a second agent", func(*Options) {}, ErrRunning},
		{"no cgroup v2", func(o *Options) { o.CgroupRoot = t.TempDir() }, errAny},
		{"a directory that is not there", func(o *Options) { o.CgroupRoot = "/nowhere" }, errAny},
		{"no bpffs", func(o *Options) { o.BPFFS = t.TempDir() }, errAny},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := r.opts
			tc.edit(&o)
			r.onNode(func() error {
				d, err := Open(o)
				switch {
				case err == nil:
					t.Error("opened")
					return d.Close()
				case !errors.Is(tc.want, errAny) && !errors.Is(err, tc.want):
					t.Errorf("error %v, want %v", err, tc.want)
				}
				t.Log(err)
				return nil
			})
		})
	}
	r.serveVIPs(lb.TCP, "backend1")
	if got, _ := r.dial("client1", lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(vips[lb.IPv4])}, 2); got["backend1"] != 2 {
		t.Errorf("after that: %v, want 2 answers", got)
	}
}

var errAny = errors.New("any error")

// onNode runs f in the node's network namespace.
func (r *rig) onNode(f func() error) {
	r.t.Helper()
	if err := r.lab.Host(lab.Node).Do(f); err != nil {
		r.t.Fatal(err)
	}
}

// heldPause is how many times as long as its work a caller pauses, so that 16 of
// them leave a processor to the agent, however slow the machine is.
const heldPause = 15

// held keeps pinging a connection and dialling until stop, and reports what
// failed.
func (r *rig) held(ctx context.Context, from, proto, to string) <-chan error {
	failed := make(chan error, 1)
	c := r.open(from, proto, to)
	go func() {
		defer close(failed)
		for ctx.Err() == nil {
			begin := time.Now()
			if err := c.Ping(r.t.Context()); err != nil {
				failed <- err
				return
			}
			res := r.lab.Host(from).Dial(r.t.Context(), lab.Request{Proto: proto, To: netip.MustParseAddrPort(to), Timeout: patience})
			if res.Kind != lab.OK {
				failed <- errors.New("dial: " + string(res.Kind) + " " + res.Err)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(heldPause * time.Since(begin)):
			}
		}
	}()
	return failed
}
