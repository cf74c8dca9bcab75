// SPDX-License-Identifier: Apache-2.0

package flowtest

import "slices"

// all is a set of endpoints of which some run here and one elsewhere.
const all = "b0 b1 r0"

// everywhere is a Service at every sort of address.
const everywhere = "lb ext"

// Rules returns the table. Names of rules and rows are stable: docs/COMPATIBILITY.md
// cites them.
func Rules() []Rule {
	return slices.Concat(addressRules, policyRules, poolRules, termRules, nodeRules)
}

// addressRules are about the kinds of addresses, without traffic policies.
// Source: semantics 1.2, masquerading, hairpin, ipMode, externalIPs.
var addressRules = []Rule{
	{Name: "cluster IP", Services: []Service{{"web", "", all}, {"near", "", "b0 b1"}}, Rows: []Row{
		{"pod", pod, "cluster", all, client, nil, ""},
		{"pod on the packet path", net, "cluster", all, client, nil, ""},
		{"node", proc, "cluster", all, node, nil, ""},
		{"node, bound", proc + "@second", "near.cluster", "b0 b1", client, nil, "v4"},
		{"outside", out, "cluster", all, node, nil, ""},
		{"outside, bound", out + "@second", "cluster", all, node, nil, ""},
		{"pod of another node", rem, "near.cluster", "b0 b1", client, nil, ""},
	}},
	{Name: "node port", Services: []Service{{"web", "np", all}}, Rows: []Row{
		{"pod", pod, "node", all, client, socketSource, ""},
		{"pod, second address", pod, "node2", all, client, socketSource, ""},
		{"pod on the packet path", net, "node", all, node, nil, ""},
		{"pod on the packet path, second address", net, "node2", all, node, nil, ""},
		{"node", proc, "node", all, node, nil, ""},
		{"node, second address", proc, "node2", all, node, nodeAddrs, ""},
		{"outside", out, "node", all, node, nil, ""},
		{"outside, second address", out, "node2", all, node, nodeAddrs, ""},
		{"pod of another node", rem, "node", all, node, nil, ""},
		{"pod of another node, second address", rem, "node2", all, node, nodeAddrs, ""},
		{"cluster IP of it", pod, "cluster", all, client, nil, ""},
		{"cluster IP of it, from outside", out, "cluster", all, node, nil, ""},
		{"localhost", proc, "localhost", all, node, nil, "v4"},
		{"localhost, IPv6", proc, "localhost", all, node, localhost6, "v6"},
		{"a pod's own localhost", pod, "localhost", "untouched", nobody, nil, ""},
		{"a pod's own localhost on the packet path", net, "localhost", "untouched", nobody, nil, ""},
		{"a port that no Service has", out, "node:1080", "untouched", nobody, nil, ""},
		{"a port that no Service has, from a pod", pod, "node:1080", "untouched", nobody, nil, ""},
	}},
	{Name: "load balancer", Services: []Service{{"web", "lb lb2", all}, {"near", "lb", "b0 b1"}}, Rows: []Row{
		{"pod", pod, "lb", all, client, socketSource, ""},
		{"pod on the packet path", net, "lb", all, node, nil, ""},
		{"node", proc, "lb", all, node, nil, ""},
		{"outside", out, "lb", all, node, nil, ""},
		{"pod of another node", rem, "lb", all, node, nil, ""},
		{"second address", out, "lb2", all, node, nil, ""},
		{"second address, from a pod", pod, "lb2", all, client, socketSource, ""},
		{"node port of it", out, "node", all, node, nil, ""},
		{"node port of it, from a pod", pod, "near.node", "b0 b1", client, socketSource, ""},
		{"cluster IP of it", net, "cluster", all, client, nil, ""},
		{"another port of the address", out, "lb:81", "untouched", nobody, nil, ""},
		{"another port of the address, from a pod", pod, "lb:81", "untouched", nobody, nil, ""},
	}},
	{Name: "external IP", Services: []Service{{"web", "ext", all}, {"both", "lb ext=lb", all}, {"np", "np ext", "b1 b2"}}, Rows: []Row{
		{"pod", pod, "ext", all, client, socketSource, ""},
		{"pod on the packet path", net, "ext", all, node, nil, ""},
		{"node", proc, "ext", all, node, nil, ""},
		{"outside", out, "ext", all, node, nil, ""},
		{"pod of another node", rem, "ext", all, node, nil, ""},
		{"that is the load balancer's, too", out, "both.lb", all, node, nil, ""},
		{"that is the load balancer's, too, from a pod", pod, "both.lb", all, client, socketSource, ""},
		{"of a NodePort Service", out, "np.ext", "b1 b2", node, nil, ""},
		{"another port of the address", net, "ext:81", "untouched", nobody, nil, ""},
	}},
	{Name: "ipMode", Services: []Service{
		{"vip", "lbvip", all}, {"proxy", "lbproxy", all}, {"mixed", "lb lbproxy", all}, {"host", "lbhost", all},
	}, Rows: []Row{
		{"VIP", out, "lbvip", all, node, nil, ""},
		{"VIP, from a pod", pod, "lbvip", all, client, socketSource, ""},
		{"Proxy is not served", out, "proxy.lbproxy", "untouched", nobody, nil, ""},
		{"Proxy is not served to pods", pod, "proxy.lbproxy", "untouched", nobody, nil, ""},
		{"Proxy is not served to pods on the packet path", net, "proxy.lbproxy", "untouched", nobody, nil, ""},
		{"Proxy is not served to the node", proc, "proxy.lbproxy", "untouched", nobody, nil, ""},
		{"node port of Proxy", out, "proxy.node", all, node, nil, ""},
		{"cluster IP of Proxy", net, "proxy.cluster", all, client, nil, ""},
		{"the VIP beside a Proxy", out, "mixed.lb", all, node, nil, ""},
		{"the Proxy beside a VIP", out, "mixed.lbproxy", "untouched", nobody, nil, ""},
		{"node port of a host name", out, "host.node", all, node, nil, ""},
		{"cluster IP of a host name", pod, "host.cluster", all, client, nil, ""},
	}},
	{Name: "no node port", Services: []Service{{"web", "lb nonp", all}, {"local", "lb nonp etp", all}}, Rows: []Row{
		{"load balancer", out, "lb", all, node, nil, ""},
		{"load balancer, from a pod", pod, "lb", all, client, socketSource, ""},
		{"cluster IP", net, "cluster", all, client, nil, ""},
		{"there is none", out, "node", "untouched", nobody, nil, ""},
		{"there is none for the node", proc, "node", "untouched", nobody, nil, ""},
		{"policy Local", out, "local.lb", "b0 b1", client, nil, ""},
	}},
	{Name: "hairpin", Services: []Service{{"zero", everywhere, "b0"}, {"one", everywhere, "b1"}}, Rows: []Row{
		{"cluster IP", self, "zero.cluster", "b0", node, nil, ""},
		{"node port", self, "zero.node", "b0", node, nil, ""},
		{"load balancer", self, "zero.lb", "b0", node, nil, ""},
		{"external IP", self, "zero.ext", "b0", node, nil, ""},
		{"cluster IP, socket path", selfsock, "one.cluster", "b1", client, socketSource, ""},
		{"node port, socket path", selfsock, "one.node", "b1", client, socketSource, ""},
		{"load balancer, socket path", selfsock, "one.lb", "b1", client, socketSource, ""},
		{"to another backend", self, "one.cluster", "b1", client, nil, ""},
	}},
	{Name: "who serves", Services: []Service{
		{"web", "", "b0"}, {"headless", "headless np", "b0"}, {"name", "lb external-name", "b0"},
		{"foreign", "foreign=other lb ext", "b0"}, {"foreignempty", "foreign= np", "b0"},
	}, Rows: []Row{
		{"we do", pod, "cluster", "b0", client, nil, ""},
		{"nobody: headless", pod, "headless.cluster", "untouched", nobody, nil, ""},
		{"nobody: headless, packet path", net, "headless.node", "untouched", nobody, nil, ""},
		{"nobody: ExternalName", pod, "name.cluster", "untouched", nobody, nil, ""},
		{"nobody: ExternalName, outside", out, "name.lb", "untouched", nobody, nil, ""},
		{"another proxy", pod, "foreign.cluster", "untouched", nobody, nil, ""},
		{"another proxy, packet path", net, "foreign.cluster", "untouched", nobody, nil, ""},
		{"another proxy, node port", out, "foreign.node", "untouched", nobody, nil, ""},
		{"another proxy, load balancer", out, "foreign.lb", "untouched", nobody, nil, ""},
		{"another proxy, external IP", proc, "foreign.ext", "untouched", nobody, nil, ""},
		{"another proxy without a name", out, "foreignempty.node", "untouched", nobody, nil, ""},
	}},
	{Name: "two claim an address", Services: []Service{
		{"young", "ext", "b0"}, {"elder", "old ext=young", "b1"},
	}, Rows: []Row{
		{"the older one has it", out, "ext", "b1", node, conflict, ""},
		{"the older one has it, from a pod", pod, "ext", "b1", client, conflict, ""},
		{"the younger one's cluster IP", pod, "young.cluster", "b0", client, nil, ""},
	}},
	{Name: "ports of a cluster IP", Services: []Service{{"web", everywhere, "b0"}, {"tcponly", "tcp", "b0"}, {"udponly", "udp", "b0"}}, Rows: []Row{
		{"unknown", pod, "cluster:81", "refused", nobody, unknownPort, ""},
		{"unknown, packet path", net, "cluster:81", "refused", nobody, unknownPort, ""},
		{"unknown, node", proc, "cluster:81", "refused", nobody, unknownPort, "tcp"},
		{"unknown, node, UDP", proc, "cluster:81", "refused", nobody, unknownPort, "udp v4"},
		{"unknown, node, connected UDP", proc, "cluster:81", "untouched", nobody, connectedUDP, "udp v6"},
		{"unknown, outside", out, "cluster:81", "refused", nobody, unknownPort, ""},
		{"unknown, pod of another node", rem, "cluster:81", "refused", nobody, unknownPort, ""},
		{"only TCP: TCP", pod, "tcponly.cluster", "b0", client, nil, "tcp"},
		{"only TCP: UDP", pod, "tcponly.cluster", "refused", nobody, unknownPort, "udp"},
		{"only TCP: UDP, outside", out, "tcponly.cluster", "refused", nobody, unknownPort, "udp"},
		{"only UDP: UDP", net, "udponly.cluster", "b0", client, nil, "udp"},
		{"only UDP: TCP", net, "udponly.cluster", "refused", nobody, unknownPort, "tcp"},
		{"only UDP: TCP, node", proc, "udponly.cluster", "refused", nobody, unknownPort, "tcp"},
	}},
	{Name: "cluster IP of nobody", Services: []Service{{"name", "external-name", "b0"}}, Rows: []Row{
		{"pod", pod, "cluster", "untouched", nobody, unallocated, ""},
		{"packet path", net, "cluster", "untouched", nobody, unallocated, ""},
		{"node", proc, "cluster", "untouched", nobody, unallocated, ""},
		{"outside", out, "cluster", "untouched", nobody, unallocated, ""},
	}},
}
