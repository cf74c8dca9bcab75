// SPDX-License-Identifier: Apache-2.0

// Package labtest connects the suites of dptest and flowtest with a lab: real hosts and
// real packets. A dataplane's own harness adds how it is opened, and what it can.
package labtest

import (
	"context"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane/dptest"
	"github.com/lbproxy/lbproxy/internal/dataplane/flowtest"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// How long a caller waits for an answer: for one that should not come, and for
// one that should, on a machine that may be emulated and busy.
const (
	Silence  = 400 * time.Millisecond
	Patience = 10 * time.Second
)

// BackendPort is the first of Ports.
const BackendPort = 8080

// Ports are where every backend serves.
var Ports = [2]uint16{BackendPort, 8081}

// Backends are the hosts that serve, those of the node first.
var Backends = []string{"backend1", "backend2", "backend3", "remote1"}

// Hosts are the lab's hosts for the origins of flows. backend1 is not hooked, so that it
// meets itself on the packet path.
var Hosts = map[dptest.Origin]string{
	dptest.PodHooked:    "client1",
	dptest.PodUnhooked:  "client2",
	dptest.Node:         lab.Node,
	dptest.Outside:      lab.Outside,
	dptest.Remote:       "remote2",
	dptest.Self:         "backend1",
	flowtest.SelfHooked: "backend2",
}

// Further addresses of outside: a second one, those of a load balancer that are looped,
// and many clients.
var (
	outsideSecond = []netip.Addr{netip.MustParseAddr("172.30.2.1"), netip.MustParseAddr("fd00:30:2::1")}
	looped        = []netip.Addr{netip.MustParseAddr("172.32.0.250"), netip.MustParseAddr("fd00:32::fff0")}
	firstOfMany   = []netip.Addr{netip.MustParseAddr("172.30.3.1"), netip.MustParseAddr("fd00:30:3::1")}
)

const many = 32 // of each family

// UDP source ports are above the ephemeral range; masquerading is below.
const (
	firstPort = 61000
	ports     = 4500
)

// Net is a lab with servers on every backend, and how its hosts dial.
type Net struct {
	Lab *lab.Lab

	// Sockets tells that the dataplane translates the sockets of hooked pods and of the
	// node. Of those, UDP sockets connect if Connect says so; all others always do: then
	// the kernel tells them of ICMP errors.
	Sockets bool
	Connect func(f dptest.Flow) bool

	// Lost is called for each exchange that should be answered and was not.
	Lost func(t *testing.T, from dptest.Origin, r lab.Result)

	flows atomic.Uint32
}

// NewLab makes a lab, which ends with t.
func NewLab(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	l, err := lab.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// Serve starts servers for TCP and UDP.
func Serve(t *testing.T, h *lab.Host, port uint16) {
	t.Helper()
	for _, proto := range []string{lab.TCP, lab.UDP} {
		if err := h.Serve(t.Context(), proto, lab.AnyAddr(port)); err != nil {
			t.Fatal(err)
		}
	}
}

// New makes a lab with servers.
func New(t *testing.T) *Net {
	t.Helper()
	pods := append(lab.DefaultPods(), lab.PodSpec{Name: "remote2", Node: lab.Node2})
	for i := range pods {
		if pods[i].Name == "backend1" {
			pods[i].Unhooked = true
		}
	}
	l := NewLab(t, lab.Options{Pods: pods})
	for _, name := range Backends {
		for _, port := range Ports {
			Serve(t, l.Host(name), port)
		}
	}
	for _, a := range slices.Concat(outsideSecond, looped, manyAddrs()) {
		if err := l.Host(lab.Outside).AddAddr(a); err != nil {
			t.Fatal(err)
		}
	}
	return &Net{Lab: l}
}

func manyAddrs() []netip.Addr {
	var addrs []netip.Addr
	for _, a := range firstOfMany {
		for range many {
			addrs = append(addrs, a)
			a = a.Next()
		}
	}
	return addrs
}

// Addrs implements dptest.Harness.
func (n *Net) Addrs() dptest.Addresses {
	a := dptest.Addresses{
		Ports:        Ports,
		Node:         n.Lab.Host(lab.Node).Addrs(),
		ServiceVIPs:  []netip.Prefix{lab.ServiceVIPs4, lab.ServiceVIPs6},
		ExternalVIPs: []netip.Prefix{lab.BalanceVIPs4, lab.BalanceVIPs6},
		Sources:      map[dptest.Origin][]netip.Addr{},
		Many:         manyAddrs(),
	}
	for _, name := range Backends {
		b := n.Lab.Host(name)
		a.Backends = append(a.Backends, dptest.Backend{V4: b.Addr4, V6: b.Addr6, Local: name != "remote1"})
	}
	for o, name := range Hosts {
		a.Sources[o] = n.Lab.Host(name).Addrs()
	}
	a.Sources[dptest.Node] = append(a.Sources[dptest.Node], lab.NodeSecond4, lab.NodeSecond6) // masquerading chooses
	return a
}

// Network implements flowtest.Harness.
func (n *Net) Network() flowtest.Network {
	out := flowtest.Network{
		Addresses:    n.Addrs(),
		Cluster:      []netip.Prefix{lab.ClusterPods4, lab.ClusterPods6},
		NodeCIDRs:    []netip.Prefix{lab.NodePods4, lab.NodePods6},
		Bridge:       n.Lab.Host("client2").Device(),
		DevicePrefix: "v-",
		Second: map[dptest.Origin][]netip.Addr{
			dptest.Outside: outsideSecond, dptest.Node: {lab.NodeSecond4, lab.NodeSecond6},
		},
		Looped: looped,
	}
	out.Node = []netip.Addr{lab.NodeAddr4, lab.NodeSecond4, lab.NodeAddr6, lab.NodeSecond6}
	return out
}

// hooked tells whether the sockets of an origin are translated.
func (n *Net) hooked(o dptest.Origin) bool {
	return n.Sockets && (o == dptest.PodHooked || o == dptest.Node || o == flowtest.SelfHooked)
}

// connects tells whether the UDP socket of a flow connects.
func (n *Net) connects(f dptest.Flow) bool {
	return !n.hooked(f.From) || n.Connect != nil && n.Connect(f)
}

// from returns where a flow comes from, with a port that no other flow has: one that is
// used again within the time-out continues its flow, as it should.
func (n *Net) from(f dptest.Flow) netip.AddrPort {
	addr, host := f.Source, n.Lab.Host(Hosts[f.From])
	switch {
	case addr.IsValid():
	case f.To.Addr().Is6():
		addr = host.Addr6
	default:
		addr = host.Addr4
	}
	return netip.AddrPortFrom(addr, uint16(firstPort+n.flows.Add(1)%ports))
}

func timeoutOf(silent bool) time.Duration {
	if silent {
		return Silence
	}
	return Patience
}

// exchanges makes the attempts of f.
func (n *Net) exchanges(ctx context.Context, f dptest.Flow) ([]lab.Result, error) {
	host := n.Lab.Host(Hosts[f.From])
	req := lab.Request{Proto: lab.TCP, To: f.To, Timeout: timeoutOf(f.Silence)}
	if f.Source.IsValid() {
		req.From = netip.AddrPortFrom(f.Source, 0)
	}
	if f.Proto == lb.UDP {
		req.Proto, req.Connected = lab.UDP, n.connects(f)
	}
	if f.Proto != lb.UDP || f.To.Addr().IsLoopback() {
		return host.DialMany(ctx, req, f.N)
	}
	rs := make([]lab.Result, f.N)
	for i := range rs {
		req.From = n.from(f)
		rs[i] = host.Dial(ctx, req)
	}
	return rs, nil
}
