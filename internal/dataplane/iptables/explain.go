// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// explainPorts are the source ports that a hash is tried with.
const explainPorts = 16

// Explain tells what becomes of a new connection from an address to a frontend: it follows
// the rules as the kernel does. Where chance decides, all that it may decide for is told.
func (v *View) Explain(from netip.Addr, to lb.FrontendKey) (dataplane.Explanation, error) {
	e := dataplane.Explanation{Decision: "pass", Reason: fmt.Sprintf("%s is not a frontend: the packet goes on as it is", to)}
	fam := v.families[lb.FamilyOf(from)]
	if fam == nil {
		return e, nil
	}
	in, err := v.deviceOf(from)
	if err != nil {
		return e, err
	}
	p := &packet{
		family: lb.FamilyOf(from), proto: to.Proto, in: in,
		src: netip.AddrPortFrom(from, 40000), dst: to.Addr,
	}
	fe := v.frontendOf(to)
	if fe != nil {
		e.Service = fe.service.name.String()
		e.Approximation = v.approximation(fe.service)
	}
	at := fam.nat.walk(servicesChain, p)
	e.Masquerade = p.mark != 0
	caller := whereFrom(from, in)
	if at.target == "DNAT" && fe != nil {
		e.Steps = append(e.Steps, caller)
		return e, v.forward(&e, fe.service, fam, p, at)
	}
	e.Steps = append([]string{caller}, at.steps...)
	e.Masquerade = false
	refused := fam.filter.walk(filterChain, p)
	e.Steps = append(e.Steps, refused.steps...)
	v.refuse(&e, fe, refused, from, to)
	return e, nil
}

// deviceOf returns the device, and for its sake the bridge, that packets from an address
// come from; none if that is the node itself.
func (v *View) deviceOf(from netip.Addr) (string, error) {
	if v.isLocal(from) {
		return "", nil
	}
	routes, err := netlink.RouteGet(from.AsSlice())
	if err != nil || len(routes) == 0 {
		return "", nil // nobody there can reach this node
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return "", fmt.Errorf("the device towards %s: %w", from, err)
	}
	return link.Attrs().Name, nil
}

// whereFrom says which way packets from an address come: that is what rules go by.
func whereFrom(from netip.Addr, device string) string {
	if device == "" {
		return fmt.Sprintf("%s is this node, or has no way to it: its packets begin in OUTPUT", from)
	}
	return fmt.Sprintf("packets of %s come by %s, to PREROUTING", from, device)
}

// forward explains a connection that gets a backend.
func (v *View) forward(e *dataplane.Explanation, svc *serviceView, fam *familyView, p *packet, at verdict) error {
	scope := lb.ScopeCluster
	for i, step := range at.steps { // one of them leads to the pool
		_, chain, _ := strings.Cut(step, "-g ")
		if sc, isPool := poolScope(chain); isPool {
			scope = sc
			e.Steps = append(append(e.Steps, at.steps[:i+1]...), certain(at.steps[i+1:])...)
		}
	}
	pool := [...]string{"cluster", "local"}[scope]
	e.Decision = "forward"
	only, kept := v.candidate(svc, fam, p, at)
	loads, err := v.loads()
	if err != nil {
		return err
	}
	live := loads[svc.name]
	for _, be := range v.backends(svc, scope, live) {
		if (be.Pools == "both" || be.Pools == pool) && (!only.IsValid() || be.Address == only.String()) {
			e.Candidates = append(e.Candidates, be)
		}
	}
	n := len(e.Candidates)
	reasons := map[string]string{
		"random": fmt.Sprintf("one of %d backends at random", n), "round-robin": fmt.Sprintf("the next of %d backends in turn", n),
		"hash": fmt.Sprintf("one of %d backends by a hash of the client", n), "ip-hash": fmt.Sprintf("one of %d backends by a hash of the client", n),
	}
	reason, known := reasons[svc.algorithm]
	switch {
	case kept:
		reason = fmt.Sprintf("session affinity: %s keeps %s", p.src.Addr(), only)
	case only.IsValid() && strings.HasSuffix(svc.algorithm, "hash"):
		reason = "the backend of this client by its hash"
	case n == 1:
		reason = "the only backend"
	case !known:
		reason = fmt.Sprintf("one of %d backends by %s, as shares of what is known of their loads", n, svc.algorithm)
	}
	e.Reason = reason + ", in the " + pool + " pool"
	e.Steps = append(e.Steps, fmt.Sprintf("%s pool: %d backends, algorithm %s", pool, n, svc.algorithm))
	if e.Masquerade {
		e.Steps = append(e.Steps, fmt.Sprintf("mark %#x: POSTROUTING masquerades, the backend sees this node's address, not %s", p.mark, p.src.Addr()))
	} else {
		e.Steps = append(e.Steps, fmt.Sprintf("no mark: the backend sees %s, unless it is the backend itself", p.src.Addr()))
	}
	return nil
}

// certain returns the steps before the first that chance decided about.
func certain(steps []string) []string {
	i := slices.IndexFunc(steps, func(s string) bool {
		c := chanceOf(rule{text: s})
		return c.part < 1 || c.program != "" || strings.Contains(s, "-j DNAT")
	})
	if i < 0 {
		return steps
	}
	return steps[:i]
}

// candidate returns the backend that this client gets for certain, if there is one, and
// whether it has it by session affinity.
func (v *View) candidate(svc *serviceView, fam *familyView, p *packet, at verdict) (only netip.AddrPort, kept bool) {
	if slices.ContainsFunc(at.steps, func(s string) bool { return strings.Contains(s, "--match-set "+prefix+"A") }) {
		return at.to, true
	}
	if !strings.HasSuffix(svc.algorithm, "hash") || v.approximation(svc) != "" {
		return netip.AddrPort{}, false
	}
	for i := range explainPorts { // unless the port counts
		other := *p
		other.mark, other.src = 0, netip.AddrPortFrom(p.src.Addr(), uint16(40000+251*i))
		if got := fam.nat.walk(servicesChain, &other); got.to != at.to {
			return netip.AddrPort{}, false
		}
	}
	return at.to, false
}

// refuse explains what becomes of a connection that got no backend.
func (v *View) refuse(e *dataplane.Explanation, fe *frontendView, at verdict, from netip.Addr, to lb.FrontendKey) {
	switch {
	case at.target == "DROP" && fe != nil && fe.ranged:
		e.Decision, e.Reason = "drop", fmt.Sprintf("%s is in none of the load balancer's source ranges", from)
	case at.target == "DROP":
		e.Decision, e.Reason = "drop", "no backend on this node, and the traffic policy is Local"
	case at.target == "REJECT" && fe != nil:
		e.Decision, e.Reason = "reject", "the pool of this caller has no backends"
	case at.target == "REJECT":
		e.Decision = "reject"
		e.Reason = fmt.Sprintf("%s is a cluster IP, and has no port %d/%s", to.Addr.Addr(), to.Addr.Port(), to.Proto)
	case fe != nil:
		e.Reason = "no rule takes the packet: it goes on as it is"
	}
}
