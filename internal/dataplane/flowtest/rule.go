// SPDX-License-Identifier: Apache-2.0

package flowtest

import (
	"net/netip"
	"slices"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lbproxy/lbproxy/internal/dataplane/dptest"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Rule is a rule of kube-proxy's, and the rows that prove it. Its rows run for TCP
// and UDP over IPv4 and IPv6, or for what On says: words of tcp, udp, v4, v6.
type Rule struct {
	Name     string
	On       string
	Config   *Config // nil: plain
	Services []Service
	Rows     []Row
}

func (r *Rule) config() *Config {
	if r.Config == nil {
		return &plain
	}
	return r.Config
}

// Service is a Service with its EndpointSlices, in words. See build.go for them.
type Service struct {
	Name string
	Spec string
	Eps  string
}

// Row is one flow.
type Row struct {
	Name string // unique in its Rule
	From string // an origin, or ORIGIN@second or outside@looped: bound to that address
	To   string // a target, or SERVICE.TARGET, or several, which are asked in turn; :PORT where it is not 80

	// Gets is who answers: all of "b0 b1", and nobody else; "one of b0 b1", always the
	// same; b0#2 at its second port. Or refused, dropped, untouched.
	Gets string

	Sees    Sees        // whose address the backend sees
	Differs *Difference // from kube-proxy; nil: it does the same in both of its modes
	On      string      // as Rule.On, for this row
}

// Sees is whose address a backend sees.
type Sees string

// The sources.
const (
	nobody Sees = ""
	client Sees = "client"
	node   Sees = "node"
)

// The origins of rows: pods of this node on the socket path and on the packet path,
// a process of the node, a host outside, a pod of another node, and two backends
// that dial themselves, on the packet path and on the socket path.
const (
	pod      = "pod"
	net      = "net"
	proc     = "proc"
	out      = "outside"
	rem      = "remote"
	self     = "self"
	selfsock = "selfsock"
)

var origins = map[string]dptest.Origin{
	pod: dptest.PodHooked, net: dptest.PodUnhooked, proc: dptest.Node, out: dptest.Outside,
	rem: dptest.Remote, self: dptest.Self, selfsock: SelfHooked,
}

// Difference is what lbproxy does otherwise than a mode of kube-proxy, on purpose.
type Difference struct {
	ID   string // as docs/COMPATIBILITY.md has it
	Text string
}

// The differences that rows show.
var (
	socketSource = &Difference{"socket-source", "a socket of this node is translated when it connects: the backend sees the pod, where kube-proxy shows the node"}
	localhost6   = &Difference{"localhost-ipv6", "NodePorts answer at ::1, too; kube-proxy serves 127.0.0.1 at most"}
	unknownPort  = &Difference{"unknown-port", "refused, as nftables has it; with iptables the packets leave the node"}
	connectedUDP = &Difference{"unknown-port-connected-udp", "a process of the node may connect a UDP socket to such a port, as resolvers do to learn their source address; what it sends leaves the node"}
	unallocated  = &Difference{"unallocated-cluster-ip", "nobody's business, as with iptables; nftables drops them"}
	invalidRange = &Difference{"invalid-range", "source ranges that cannot be read let nobody in; kube-proxy passes over them, and without a valid one all are let in"}
	conflict     = &Difference{"conflict", "the older Service has it; with kube-proxy it is chance"}
	nodeAddrs    = &Difference{"node-port-addresses", "all addresses by default, as iptables has it; nftables serves the primary ones"}
)

// Differences returns all of them.
func Differences() []*Difference {
	return []*Difference{socketSource, localhost6, unknownPort, connectedUDP, unallocated, invalidRange, conflict, nodeAddrs}
}

// Config is how a node is configured.
type Config struct {
	Name            string
	Detect          func(*Network) lb.LocalDetector     // nil: by the ranges of all pods
	NodePorts       func(*Network) lb.NodePortAddresses // nil: everywhere
	MasqueradeAll   bool
	DenyExternalIPs bool
	NoZone          bool // the Node says no zone; else it is in zone a
	External        bool // the node's second addresses are ExternalIPs; else InternalIPs, too
}

// setup is for a dataplane that is told of the Node what own has, as read from node.
func (c *Config) setup(n *Network, own lb.Node) Setup {
	s := Setup{Local: lb.LocalDetector{Mode: lb.LocalClusterCIDR, Ranges: n.Cluster}, Node: own}
	if c.Detect != nil {
		s.Local = c.Detect(n)
	}
	if c.NodePorts != nil {
		s.NodePorts = c.NodePorts(n)
	}
	return s
}

// node returns the Node object. Of its addresses the second ones are listed first where
// they should not count all the same.
func (c *Config) node(n *Network) *v1.Node {
	out := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: hereName, Labels: map[string]string{v1.LabelTopologyZone: "a"}}}
	if c.NoZone {
		out.Labels = nil
	}
	for _, p := range n.NodeCIDRs {
		out.Spec.PodCIDRs = append(out.Spec.PodCIDRs, p.String())
	}
	add := func(typ v1.NodeAddressType, addrs []netip.Addr) {
		for _, a := range addrs {
			out.Status.Addresses = append(out.Status.Addresses, v1.NodeAddress{Type: typ, Address: a.String()})
		}
	}
	if c.External {
		add(v1.NodeExternalIP, n.second())
		add(v1.NodeInternalIP, n.primary())
		return out
	}
	add(v1.NodeInternalIP, n.primary())
	add(v1.NodeInternalIP, n.second())
	return out
}

// primary returns the first address of each family.
func (n *Network) primary() []netip.Addr {
	var addrs []netip.Addr
	for _, f := range families {
		addrs = append(addrs, n.nodeAddrs(f)[0])
	}
	return addrs
}

// second returns the second address of each family.
func (n *Network) second() []netip.Addr {
	var addrs []netip.Addr
	for _, f := range families {
		addrs = append(addrs, n.nodeAddrs(f)[1])
	}
	return addrs
}

// nodeAddrs returns the node's addresses of a family.
func (n *Network) nodeAddrs(f lb.Family) []netip.Addr { return ofFamily(n.Node, f) }

func ofFamily(list []netip.Addr, f lb.Family) []netip.Addr {
	var addrs []netip.Addr
	for _, a := range list {
		if lb.FamilyOf(a) == f {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// The configurations.
var (
	plain        = Config{Name: "plain"}
	masqAll      = Config{Name: "masqueradeAll", MasqueradeAll: true}
	noZone       = Config{Name: "no zone", NoZone: true}
	noExternal   = Config{Name: "external IPs off", DenyExternalIPs: true}
	noDetector   = Config{Name: "no detector", Detect: detector(lb.LocalNone)}
	noDetectMasq = Config{Name: "no detector, masqueradeAll", Detect: detector(lb.LocalNone), MasqueradeAll: true}
	nodeCIDR     = Config{Name: "NodeCIDR", Detect: detector(lb.LocalNodeCIDR)}
	bridge       = Config{Name: "BridgeInterface", Detect: detector(lb.LocalBridgeInterface)}
	namePrefix   = Config{Name: "InterfaceNamePrefix", Detect: detector(lb.LocalInterfaceNamePrefix)}

	oneFamily = Config{Name: "pods of IPv4 only", Detect: func(n *Network) lb.LocalDetector {
		return lb.LocalDetector{Mode: lb.LocalClusterCIDR, Ranges: slices.DeleteFunc(slices.Clone(n.Cluster), func(p netip.Prefix) bool { return !p.Addr().Is4() })}
	}}

	npPrimary  = Config{Name: "NodePorts at the primary addresses", NodePorts: primaryOnly}
	npExternal = Config{Name: "NodePorts at the primary addresses, others are external", NodePorts: primaryOnly, External: true}
	npRange    = Config{Name: "NodePorts in an IPv4 range", NodePorts: func(n *Network) lb.NodePortAddresses {
		second := n.nodeAddrs(lb.IPv4)[1]
		return lb.NodePortAddresses{Ranges: []netip.Prefix{netip.PrefixFrom(second, second.BitLen())}}
	}}
	npLocalhost = Config{Name: "NodePorts at localhost", NodePorts: func(*Network) lb.NodePortAddresses {
		return lb.NodePortAddresses{Ranges: []netip.Prefix{
			netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"),
		}}
	}}
)

func primaryOnly(*Network) lb.NodePortAddresses { return lb.NodePortAddresses{Primary: true} }

func detector(m lb.LocalMode) func(*Network) lb.LocalDetector {
	return func(n *Network) lb.LocalDetector {
		d := lb.LocalDetector{Mode: m}
		switch m {
		case lb.LocalBridgeInterface:
			d.Interface = n.Bridge
		case lb.LocalInterfaceNamePrefix:
			d.Interface = n.DevicePrefix
		case lb.LocalNone, lb.LocalClusterCIDR, lb.LocalNodeCIDR:
		}
		return d
	}
}
