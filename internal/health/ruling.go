// SPDX-License-Identifier: Apache-2.0

package health

import (
	"net/netip"
	"slices"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// scopes are the pools of a Service.
var scopes = [2]lb.Scope{lb.ScopeCluster, lb.ScopeLocal}

// hasBackend tells whether addr takes new connections of svc.
func hasBackend(svc *lb.Service, addr netip.AddrPort) bool {
	for _, sc := range scopes {
		backends := svc.Pool(sc).Backends
		i, found := slices.BinarySearchFunc(backends, addr, func(b lb.Backend, a netip.AddrPort) int { return b.Addr.Compare(a) })
		if found && backends[i].Weight > 0 {
			return true
		}
	}
	return false
}

// ruleTouched rules the pools anew of which verdicts changed. m.mu is held.
func (m *Monitor) ruleTouched() {
	for w := range m.touched {
		m.rule(w)
	}
	clear(m.touched)
}

// rule rules the pools of w, and marks its object as dirty if it is handed on otherwise.
func (m *Monitor) rule(w *watch) {
	p := m.port(w.name)
	if p == nil || p.watch != w {
		return
	}
	if len(w.backends) == 0 && !active(&w.health) {
		h := w.health
		m.unwatch(p)
		m.handOn(p, w.object, &h)
		return
	}
	votes := map[netip.AddrPort]vote{}
	for addr, b := range w.backends {
		if b.mark.State == Ejected {
			votes[addr] = vote{b.mark.passive(), b.mark.Since}
		}
	}
	before := w.ignored
	w.local = len(p.svc.Local.Backends) > 0
	for i, sc := range scopes {
		old := w.rulings[i].ignored
		w.rulings[i] = rule(p.svc.Pool(sc).Backends, votes, &w.health)
		m.tellIgnored(w, sc, old)
	}
	w.ignored = 0
	for addr := range votes {
		if w.why(addr) != "" {
			w.ignored++
		}
	}
	m.stats.Ignored += w.ignored - before
	m.handOn(p, w.object, &w.health)
}

// handOn makes what is handed on of p anew, and o dirty if that is another one.
func (m *Monitor) handOn(p *port, o *object, h *lb.Health) {
	old := p.out
	p.makeOut(h)
	if p.out != old {
		m.markDirty(o)
	}
}

// markDirty makes o one that the Filter hands on next.
func (m *Monitor) markDirty(o *object) {
	if !o.dirty {
		o.dirty = true
		m.dirtyObjects = append(m.dirtyObjects, o)
	}
}

// why tells why an ejected backend takes connections all the same; empty: it does not.
func (w *watch) why(addr netip.AddrPort) string {
	cluster, local := w.rulings[0].ignored[addr], w.rulings[1].ignored[addr]
	switch {
	case cluster == "" && local == "":
		return ""
	case cluster == local, !w.local:
		return cluster
	case local == "":
		return cluster + " in the cluster pool"
	case cluster == "":
		return local + " in the local pool"
	}
	return cluster + " in the cluster pool, " + local + " in the local pool"
}

// makeOut makes what is handed on of p. It stays the same value if nothing is different.
func (p *port) makeOut(h *lb.Health) {
	var pools [2]lb.Pool
	same := true
	suspect := p.svc.Terms.Suspect
	if h.Passive == lb.SwitchOn && p.svc.Name.Proto == lb.TCP {
		suspect = suspectTime
	}
	for i, sc := range scopes {
		pool := *p.svc.Pool(sc)
		if p.watch != nil && len(p.watch.rulings[i].out) > 0 {
			pool.Backends = p.watch.rulings[i].apply(pool.Backends, h.Drain == lb.SwitchOn)
			same = false
		}
		pools[i] = pool
	}
	if same && suspect == p.svc.Terms.Suspect {
		p.out = p.svc
		return
	}
	if p.out != nil && p.out.Terms.Suspect == suspect && slices.Equal(p.out.Cluster.Backends, pools[0].Backends) &&
		slices.Equal(p.out.Local.Backends, pools[1].Backends) {
		return
	}
	out := *p.svc
	out.Cluster, out.Local, out.Terms.Suspect = pools[0], pools[1], suspect
	p.out = &out
}

// budget is how many more Events a Service may have.
type budget struct {
	left float64
	at   time.Time
}

// budgets limit the Events of Services: 10 at once, and then one a minute.
type budgets map[lb.Object]budget

const (
	eventBurst  = 10
	eventPeriod = time.Minute
)

// allow tells whether obj may have an Event now.
func (l budgets) allow(obj lb.Object, now time.Time) bool {
	one, ok := l[obj]
	if !ok {
		one = budget{eventBurst, now}
	}
	one.left = min(one.left+float64(now.Sub(one.at))/float64(eventPeriod), eventBurst)
	one.at = now
	may := one.left >= 1
	if may {
		one.left--
	}
	l[obj] = one
	return may
}
