// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// explainer follows the steps that the kernel's programs would take.
type explainer struct {
	*View
	out dataplane.Explanation
}

func (e *explainer) step(format string, args ...any) {
	e.out.Steps = append(e.out.Steps, fmt.Sprintf(format, args...))
}

// Explain tells what a new connection from an address to a frontend would meet:
// it reads the tables that the kernel's programs read, in the same order.
func (v *View) Explain(from netip.Addr, to lb.FrontendKey) (dataplane.Explanation, error) {
	e := &explainer{View: v}
	key, fe, err := e.lookup(to)
	if err != nil {
		return e.out, err
	}
	if _, known := v.frontends[unknownKey(addrOf(to.Addr.Addr()))]; fe == nil && known {
		e.step("frontends[%s]: the cluster IP of other ports", to.Addr.Addr())
		e.out.Decision, e.out.Reason = "reject", fmt.Sprintf("%s is a cluster IP, and has no port %d/%s", to.Addr.Addr(), to.Addr.Port(), to.Proto)
		return e.out, nil
	}
	if fe == nil {
		e.out.Decision = "pass"
		e.out.Reason = fmt.Sprintf("%s is not a frontend: the packet goes on as it is", to)
		return e.out, nil
	}
	inside, err := e.isInside(from)
	if err != nil {
		return e.out, err
	}
	name, ok := v.names[fe.Service]
	if !ok {
		return e.out, fmt.Errorf("frontend %s belongs to service id %d, which has no name", frontendFrom(key), fe.Service)
	}
	e.out.Service = name.String()
	e.step("services[%d] is %s", fe.Service, name)
	allowed, err := e.isAllowed(from, fe)
	if allowed {
		err = e.decide(from, to, fe, inside)
	}
	return e.out, err
}

// isAllowed says whether the caller is in the source ranges of a frontend.
func (e *explainer) isAllowed(from netip.Addr, fe *lbFrontend) (bool, error) {
	if fe.Flags&uint8(lbFrontendFlagsFE_RANGED) == 0 {
		return true, nil
	}
	var bits uint32
	err := e.maps.ranges().Lookup(sourceRangeOf(fe.Service, netip.PrefixFrom(from, from.BitLen())), &bits)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		e.step("source_ranges[%d, %s]: no entry", fe.Service, from)
		e.out.Decision, e.out.Reason = "drop", fmt.Sprintf("%s is in none of the load balancer's source ranges", from)
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read map %s: %w", lbMapSourceRanges, err)
	}
	e.step("source_ranges[%d, %s]: in %s", fe.Service, from, prefixFrom(addrOf(from), bits-32).Masked())
	return true, nil
}

// kept returns the backend that a client keeps in a pool, and for how much longer; 0 if
// it keeps none.
func (e *explainer) kept(from netip.Addr, fe *lbFrontend, sc lb.Scope) (id uint32, rest time.Duration, err error) {
	var a lbAffinity
	err = e.maps.byName[lbMapAffinities].Lookup(lbAffinityKey{Client: addrOf(from), Service: fe.Service}, &a)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("read map %s: %w", lbMapAffinities, err)
	}
	timeout := time.Duration(e.maps.services[fe.Service].Affinity) * time.Second
	rest = timeout - (monotonic() - time.Duration(a.Last))
	be := e.maps.backends[a.Backend]
	if rest < 0 || be.Gen != a.Gen || be.Service != fe.Service || be.Pools&(1<<sc) == 0 {
		return 0, 0, nil
	}
	return a.Backend, rest, nil
}

// lookup finds the frontend as the programs do: exactly, or as a NodePort.
func (e *explainer) lookup(to lb.FrontendKey) (lbFrontendKey, *lbFrontend, error) {
	key := frontendKeyOf(to)
	if fe, ok := e.frontends[key]; ok {
		e.step("frontends[%s]: service %d, %s, flags %s", to, fe.Service, lb.FrontendType(fe.Type), flagText(fe))
		return key, &fe, nil
	}
	e.step("frontends[%s]: no entry", to)
	var known uint32
	err := e.maps.byName[lbMapNodeAddrs].Lookup(key.Addr, &known)
	switch {
	case to.Addr.Addr().IsLoopback():
		e.step("%s is loopback: a NodePort for processes of the node only", to.Addr.Addr())
	case errors.Is(err, ebpf.ErrKeyNotExist):
		e.step("node_addrs[%s]: no entry, not an address of this node for NodePorts", to.Addr.Addr())
		return key, nil, nil
	case err != nil:
		return key, nil, fmt.Errorf("read map %s: %w", lbMapNodeAddrs, err)
	default:
		e.step("node_addrs[%s]: an address of this node", to.Addr.Addr())
	}
	any := netip.AddrPortFrom(lb.FamilyOf(to.Addr.Addr()).Unspecified(), to.Addr.Port())
	wild := lb.FrontendKey{Addr: any, Proto: to.Proto}
	fe, ok := e.frontends[frontendKeyOf(wild)]
	if !ok {
		e.step("frontends[%s]: no entry", wild)
		return key, nil, nil
	}
	e.step("frontends[%s]: service %d, NodePort, flags %s", wild, fe.Service, flagText(fe))
	return frontendKeyOf(wild), &fe, nil
}

func flagText(fe lbFrontend) string {
	if names := flagNames(fe.Flags); len(names) > 0 {
		return strings.Join(names, ",")
	}
	return "none"
}

// isInside says whether the caller counts as a pod or as this node itself.
func (e *explainer) isInside(from netip.Addr) (bool, error) {
	var v uint32
	err := e.maps.byName[lbMapPodRanges].Lookup(prefixOf(netip.PrefixFrom(from, from.BitLen())), &v)
	if err == nil {
		e.step("pod_ranges[%s]: a pod", from)
		return true, nil
	}
	if !errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, fmt.Errorf("read map %s: %w", lbMapPodRanges, err)
	}
	err = e.maps.byName[lbMapNodeAddrs].Lookup(addrOf(from), &v)
	if err == nil || from.IsLoopback() {
		e.step("%s is this node: its processes are served by the socket programs", from)
		return true, nil
	}
	e.step("pod_ranges[%s]: no entry, a caller from outside", from)
	return false, nil
}

// decide says which pool is used and what comes of it.
func (e *explainer) decide(from netip.Addr, to lb.FrontendKey, fe *lbFrontend, inside bool) error {
	local := lbFrontendFlagsFE_OUTSIDE_LOCAL
	if inside {
		local = lbFrontendFlagsFE_INSIDE_LOCAL
	}
	sc, scope := lb.ScopeCluster, "cluster"
	if fe.Flags&uint8(local) != 0 {
		sc, scope = lb.ScopeLocal, "local"
	}
	h, table, slots := e.maps.table(fe.Service, sc)
	e.step("%s pool: %d backends, algorithm %s, read by %s", scope, len(slots), cmp.Or(h.name, "none"), kindNames[h.kind()])
	if len(slots) == 0 {
		e.out.Decision, e.out.Reason = "reject", "the "+scope+" pool has no backends"
		if h.verdict() == lb.Drop {
			e.out.Decision = "drop"
			e.out.Reason = "no backend on this node, and the traffic policy is Local"
		}
		return nil
	}
	e.out.Decision = "forward"
	e.out.Reason = e.reason(from, to, h, table, slots) + ", in the " + scope + " pool"
	id, rest, err := e.kept(from, fe, sc)
	if err != nil {
		return err
	}
	if id != 0 {
		e.out.Reason = fmt.Sprintf("session affinity: %s keeps %s for %s more", from, e.maps.addrPort(id), rest.Truncate(time.Second))
		e.step("affinities[%s, %d]: backends[%d]", from, fe.Service, id)
	}
	for _, b := range e.backendViews(fe.Service, sc) {
		if (b.Pools == "both" || b.Pools == scope) && (id == 0 || b.Address == e.maps.addrPort(id).String()) {
			e.out.Candidates = append(e.out.Candidates, b)
			if b.Suspect {
				e.step("suspects: %s is avoided, if another one is there: a connection failed a moment ago", b.Address)
			}
		}
	}
	masq := fe.Flags&uint8(lbFrontendFlagsFE_MASQ_ALWAYS) != 0 ||
		!inside && fe.Flags&uint8(lbFrontendFlagsFE_MASQ_OFFCLUSTER) != 0 &&
			e.maps.settings[0].Known[familyIndex(from)]&uint32(lbKnownKNOWN_PODS) != 0
	e.out.Masquerade = masq
	if masq {
		e.step("on the packet path the backend sees this node's address, not %s", from)
	} else {
		e.step("the backend sees %s, unless it is the backend itself", from)
	}
	return nil
}
