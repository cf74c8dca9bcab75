// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"net/netip"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

const nodeTestVIP = "10.96.0.9:80"

// seenAs fails unless a backend sees who calls a cluster IP as want.
func (r *rig) seenAs(from string, want netip.Addr) bool {
	r.t.Helper()
	res := r.answersFrom(from, lab.TCP, nodeTestVIP, lab.OK)
	return res.Seen.Addr() == want
}

// TestPodsAreTold has callers of a cluster IP masqueraded that are not known as pods,
// in every mode of telling them.
func TestPodsAreTold(t *testing.T) {
	r := newRig(t, nil)
	for _, tc := range []struct {
		name  string
		local lb.LocalDetector
		node  lb.Node
		pod   bool // whether client2 is known, or nobody is
	}{
		{"by nothing", lb.LocalDetector{}, lb.Node{}, true},
		{"by a range of the other family", lb.LocalDetector{Mode: lb.LocalClusterCIDR, Ranges: []netip.Prefix{lab.ClusterPods6}}, lb.Node{}, true},
		{"by a range", podRanges(), lb.Node{}, true},
		{"by another range", lb.LocalDetector{Mode: lb.LocalClusterCIDR, Ranges: []netip.Prefix{lab.Node2Pods4}}, lb.Node{}, false},
		{"by the Node's ranges", lb.LocalDetector{Mode: lb.LocalNodeCIDR}, lb.Node{Known: true, PodCIDRs: []netip.Prefix{lab.NodePods4, lab.NodePods6}}, true},
		{"by the Node, which has no ranges", lb.LocalDetector{Mode: lb.LocalNodeCIDR}, lb.Node{Known: true}, true},
		{"by the Node, whose ranges are others", lb.LocalDetector{Mode: lb.LocalNodeCIDR}, lb.Node{Known: true, PodCIDRs: []netip.Prefix{lab.Node2Pods4}}, false},
		{"by a device's name", lb.LocalDetector{Mode: lb.LocalInterfaceNamePrefix, Interface: "v-"}, lb.Node{}, true},
		{"by another device's name", lb.LocalDetector{Mode: lb.LocalInterfaceNamePrefix, Interface: "cali"}, lb.Node{}, false},
		{"by a device that is no bridge's", lb.LocalDetector{Mode: lb.LocalBridgeInterface, Interface: "cni0"}, lb.Node{}, false},
		{"by a device", lb.LocalDetector{Mode: lb.LocalBridgeInterface, Interface: "v-client2"}, lb.Node{}, true},
	} {
		r.stop()
		r.opts.Local = tc.local
		r.start()
		r.dp.SetNode(tc.node)
		r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{r.svc("web", lb.IPv4, lb.TCP, "random",
			r.pods(lb.IPv4, "backend1"), frontend(lb.ClusterIP, lb.TCP, nodeTestVIP, lb.MasqueradeOffCluster))}})
		pod, outside := lab.NodeAddr4, lab.OutsideAddr4
		if tc.pod {
			pod = r.lab.Host("client2").Addr4
		}
		if tc.local.Knows(lb.IPv4, tc.node) {
			outside = lab.NodeAddr4
		}
		r.eventually(tc.name+": client2 is seen as "+pod.String(), func() bool { return r.seenAs("client2", pod) })
		r.eventually(tc.name+": outside is seen as "+outside.String(), func() bool { return r.seenAs(lab.Outside, outside) })
	}
}

// TestNodeChanges follows the Node's pod ranges and addresses while it runs.
func TestNodeChanges(t *testing.T) {
	r := newRig(t, func(o *Options) {
		o.Local = lb.LocalDetector{Mode: lb.LocalNodeCIDR}
		o.NodePorts = lb.NodePortAddresses{Primary: true}
	})
	nodePort := frontend(lb.NodePort, lb.TCP, "0.0.0.0:30080", lb.MasqueradeAlways)
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{r.svc("web", lb.IPv4, lb.TCP, "random",
		r.pods(lb.IPv4, "remote1"), frontend(lb.ClusterIP, lb.TCP, nodeTestVIP, lb.MasqueradeOffCluster), nodePort)}})
	client := r.lab.Host("client2").Addr4
	answers := func(at netip.Addr) bool {
		res := r.lab.Host(lab.Outside).Dial(t.Context(), lab.Request{Proto: lab.TCP, To: netip.AddrPortFrom(at, 30080), Timeout: silence})
		return res.Kind == lab.OK
	}
	if !r.seenAs("client2", client) {
		t.Error("a pod is masqueraded before anybody knows who is one")
	}
	r.dp.SetNode(lb.Node{Known: true, PodCIDRs: []netip.Prefix{lab.Node2Pods4}, Addrs: []netip.Addr{lab.NodeAddr4}})
	r.eventually("the pod is not known", func() bool { return r.seenAs("client2", lab.NodeAddr4) })
	r.dp.SetNode(lb.Node{Known: true, PodCIDRs: []netip.Prefix{lab.NodePods4}, Addrs: []netip.Addr{lab.NodeAddr4}})
	r.eventually("the pod is known", func() bool { return r.seenAs("client2", client) })
	r.eventually("the second address serves no NodePort", func() bool { return !answers(lab.NodeSecond4) })
	r.answersFrom(lab.Outside, lab.TCP, lab.NodeAddr4.String()+":30080", lab.OK)
	r.answersFrom(lab.Node, lab.TCP, "127.0.0.1:30080", lab.Refused)
	r.dp.SetNode(lb.Node{Known: true, PodCIDRs: []netip.Prefix{lab.Node2Pods4}, Addrs: []netip.Addr{lab.NodeSecond4}})
	r.eventually("the pod is not known any more", func() bool { return r.seenAs("client2", lab.NodeAddr4) })
	r.eventually("the second address serves NodePorts", func() bool { return answers(lab.NodeSecond4) })
	if answers(lab.NodeAddr4) {
		t.Error("an address that is not primary serves a NodePort")
	}
}

// TestLocalhostNodePorts asks for them at loopback addresses alone, and without.
func TestLocalhostNodePorts(t *testing.T) {
	for _, tc := range []struct {
		ranges           []string
		localhost, other lab.Kind
	}{
		{nil, lab.OK, lab.OK},
		{[]string{"127.0.0.0/8"}, lab.OK, lab.Refused},
		{[]string{"172.30.0.0/24"}, lab.Refused, lab.OK},
		{[]string{"fd00:30::/64"}, lab.OK, lab.OK}, // nothing is said of IPv4
	} {
		r := newRig(t, func(o *Options) {
			for _, p := range tc.ranges {
				o.NodePorts.Ranges = append(o.NodePorts.Ranges, netip.MustParsePrefix(p))
			}
		})
		r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{r.svc("web", lb.IPv4, lb.TCP, "random",
			r.pods(lb.IPv4, "backend1"), frontend(lb.NodePort, lb.TCP, "0.0.0.0:30080", lb.MasqueradeAlways))}})
		t.Logf("NodePorts at %v", tc.ranges)
		r.answersFrom(lab.Node, lab.TCP, "127.0.0.1:30080", tc.localhost)
		r.answersFrom(lab.Outside, lab.TCP, "172.30.0.11:30080", tc.other)
	}
}
