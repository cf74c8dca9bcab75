// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"net/netip"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// roots is what the chains that are always there depend on, in one family.
type roots struct {
	family      lb.Family
	mark        uint32   // the bit that masquerades
	randomFully bool     // MASQUERADE has --random-fully
	sourcePorts portSpan // of masqueraded connections; zero: any
	localhost   bool     // node ports may be served at 127.0.0.0/8
	liberal     bool     // packets that conntrack finds invalid pass
	node        lb.Node
	local       lb.LocalDetector
	nodePorts   lb.NodePortAddresses
	vips        string // root of the tree of addresses
	ports       string // root of the tree of node ports
	hairpins    string // root of the tree of local backends
}

// podMatches returns what rules ask to know packets of pods; none if that is not known.
func podMatches(f lb.Family, d lb.LocalDetector, node lb.Node) []string {
	if !d.Knows(f, node) {
		return nil
	}
	switch d.Mode {
	case lb.LocalBridgeInterface:
		return []string{"-i " + d.Interface}
	case lb.LocalInterfaceNamePrefix:
		return []string{"-i " + d.Interface + "+"}
	case lb.LocalNone, lb.LocalClusterCIDR, lb.LocalNodeCIDR:
	}
	var matches []string
	for _, p := range d.PodRanges(node) {
		if lb.FamilyOf(p.Addr()) == f {
			matches = append(matches, "-s "+p.String())
		}
	}
	return matches
}

// bit returns the mark's bit as value and mask.
func (r *roots) bit() string { return fmt.Sprintf("%#x/%#x", r.mark, r.mark) }

// nat returns the chains of table nat.
func (r *roots) nat() []chain {
	services := chain{name: servicesChain, rules: []string{"-j " + r.vips}}
	services.rules = append(services.rules, r.nodePortRules("-j "+nodePortsChain)...)
	return []chain{
		services,
		{nodePortsChain, []string{"-g " + r.ports}},
		{masqueradeChain, []string{"-j MARK --set-xmark " + r.bit()}},
		r.offCluster(),
		{postroutingChain, append([]string{
			"-m conntrack --ctstate DNAT -j " + r.hairpins,
			"-m mark ! --mark " + r.bit() + " -j RETURN",
			fmt.Sprintf("-j MARK --set-xmark %#x/0x0", r.mark),
		}, r.masquerade()...)},
	}
}

// offCluster marks callers that are no pods, if those are known.
func (r *roots) offCluster() chain {
	c := chain{name: offClusterChain}
	pods := podMatches(r.family, r.local, r.node)
	for _, pod := range pods {
		c.rules = append(c.rules, pod+" -j RETURN")
	}
	if len(pods) > 0 {
		c.rules = append(c.rules, "-j MARK --set-xmark "+r.bit())
	}
	return c
}

// nodePortRules ask for the addresses at which node ports are served. Nothing that is
// translated reaches ::1, and 127.0.0.1 only with route_localnet.
func (r *roots) nodePortRules(end string) []string {
	const local = " -m addrtype --dst-type LOCAL "
	loopback := netip.PrefixFrom(netip.IPv6Loopback(), 128)
	if r.family == lb.IPv4 {
		loopback = netip.MustParsePrefix("127.0.0.0/8")
	}
	var rules []string
	if r.family == lb.IPv6 || !r.localhost {
		rules = append(rules, "-d "+loopback.String()+" -j RETURN")
	}
	said := false
	at := func(p netip.Prefix) {
		if lb.FamilyOf(p.Addr()) == r.family {
			said = true
			rules = append(rules, "-d "+p.String()+local+end)
		}
	}
	for _, p := range r.nodePorts.Ranges {
		at(p)
	}
	if r.nodePorts.Primary {
		said = said || !r.node.Known // at none before it is known which they are
		for _, a := range r.node.Addrs {
			at(single(a))
		}
	}
	if !said {
		rules = append(rules, local[1:]+end)
	}
	return rules
}

// filter returns the chains of table filter.
func (r *roots) filter() []chain {
	match := func(set, dirs string) string { return "-m set --match-set " + setName(set, r.family) + " " + dirs }
	refuse := "-j " + refuseChain
	f := chain{filterChain, []string{
		"-m conntrack --ctstate DNAT -j RETURN", // it was taken: no set has to be asked
		match(rangedSet, "dst,dst") + " " + match(rangesSet, "dst,dst,src") + " " + refuse,
		match(dropSet, "dst,dst") + " -j DROP",
		match(rejectSet, "dst,dst") + " " + refuse,
	}}
	for _, proto := range []string{"tcp", "udp", "sctp"} {
		f.rules = append(f.rules, "-p "+proto+" "+match(vipsSet, "dst")+" "+refuse)
	}
	f.rules = append(f.rules, r.nodePortRules("-j "+nodePortsChain)...)
	return []chain{
		f,
		{nodePortsChain, []string{
			match(nodePortDropSet, "dst,dst") + " -j DROP",
			match(nodePortRejectSet, "dst,dst") + " " + refuse,
		}},
		{refuseChain, []string{"-p tcp -j REJECT --reject-with tcp-reset", "-j REJECT"}},
		r.forward(),
		r.input(match(healthSet, "dst,dst")),
	}
}

// forward begins with what most packets are: they meet no other rule.
func (r *roots) forward() chain {
	c := chain{forwardChain, []string{"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"}}
	if !r.liberal {
		c.rules = append(c.rules, "-m conntrack --ctstate INVALID -j DROP")
	}
	c.rules = append(c.rules,
		"-m conntrack ! --ctstate INVALID,RELATED,ESTABLISHED,UNTRACKED,DNAT -j "+filterChain, // new, and not taken
		"-m mark --mark "+r.bit()+" -j ACCEPT")
	return c
}

// input keeps others than the node itself away from 127.0.0.0/8, which route_localnet
// opens, whoever sets it, and accepts what a match says is sent to a healthCheckNodePort.
func (r *roots) input(health string) chain {
	c := chain{name: inputChain}
	if r.family == lb.IPv4 {
		c.rules = append(c.rules, "! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP")
	}
	c.rules = append(c.rules, "-p tcp "+health+" -j ACCEPT")
	return c
}
