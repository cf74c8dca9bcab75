// SPDX-License-Identifier: Apache-2.0

package health

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// suspectTime is for how long new connections avoid a backend that has just failed one,
// where passive health is on: longer than it takes to confirm it.
const suspectTime = 5 * time.Second

// Source says what Services should be: see agent.Source.
type Source interface {
	Dirty() <-chan struct{}
	Since() time.Time
	Take() ([]lb.Change, bool)
	// Nudge makes Dirty have a value.
	Nudge()
}

// Filter is a Source that hands on what another one says, in the light of what a Monitor
// knows: backends that are out have weight 0, or are left out of their pools where the
// Service says so, and Terms.Suspect is set where passive health is on. A Service that is
// as before is the same value as before.
type Filter struct {
	m     *Monitor
	src   Source
	full  bool      // the first full result was taken; guarded by m.mu
	since time.Time // when the first verdict came that no Take has taken up; guarded by m.mu
	seed  maphash.Seed
}

// Filter returns a Filter of src. It is called once, before Run.
func (m *Monitor) Filter(src Source) *Filter {
	m.filter = &Filter{m: m, src: src, seed: maphash.MakeSeed()}
	return m.filter
}

// Dirty has a value when Take may have something. It is the source's: no goroutine stands
// between an event and who waits for it.
func (f *Filter) Dirty() <-chan struct{} { return f.src.Dirty() }

// Since returns when the oldest event or verdict came that no Take has taken up; zero:
// there is none.
func (f *Filter) Since() time.Time {
	f.m.mu.Lock()
	since := f.since
	f.m.mu.Unlock()
	if src := f.src.Since(); since.IsZero() || !src.IsZero() && src.Before(since) {
		return src
	}
	return since
}

// Take returns the objects that the source says changed, and those of which verdicts did.
func (f *Filter) Take() ([]lb.Change, bool) {
	changes, full := f.src.Take()
	sooner := false
	f.m.locked(func() {
		before, _ := f.m.schedule.next()
		changes = f.take(changes, full, time.Now())
		after, some := f.m.schedule.next()
		sooner = some && !after.Equal(before)
	})
	if sooner {
		f.m.nudge()
	}
	return changes, full
}

// take is Take with m.mu held.
func (f *Filter) take(changes []lb.Change, full bool, now time.Time) []lb.Change {
	m := f.m
	if full {
		f.full = true
		m.keepOnly(changes)
	}
	out := make([]lb.Change, 0, len(changes))
	for _, ch := range changes {
		out = append(out, m.note(ch, !full, now))
	}
	m.ruleTouched() // those that changed may be ruled otherwise
	for i := range out {
		if o := m.objects[out[i].Object]; o != nil {
			out[i].Services, o.dirty = o.services(out[i].Services), false
		}
	}
	if !f.full {
		return out
	}
	for _, o := range m.dirtyObjects {
		if o.dirty && m.objects[o.name] == o {
			o.dirty = false
			out = append(out, lb.Change{Object: o.name, Services: o.services(nil), Health: o.health})
		}
	}
	m.dirtyObjects, f.since = nil, time.Time{}
	slices.SortStableFunc(out, func(a, b lb.Change) int {
		if c := strings.Compare(a.Object.Namespace, b.Object.Namespace); c != 0 {
			return c
		}
		return strings.Compare(a.Object.Name, b.Object.Name)
	})
	return out
}

// services returns what is handed on; it is in itself if that is the same.
func (o *object) services(in []*lb.Service) []*lb.Service {
	same := len(in) == len(o.ports)
	for i := 0; same && i < len(in); i++ {
		same = in[i] == o.ports[i].out
	}
	if same {
		return in
	}
	out := make([]*lb.Service, len(o.ports))
	for i := range o.ports {
		out[i] = o.ports[i].out
	}
	return out
}

// keepOnly forgets every object that changes do not name.
func (m *Monitor) keepOnly(changes []lb.Change) {
	named := make(map[lb.Object]bool, len(changes))
	for _, ch := range changes {
		named[ch.Object] = true
	}
	for name, o := range m.objects {
		if !named[name] {
			m.forget(o)
		}
	}
}

// forget frees everything about o.
func (m *Monitor) forget(o *object) {
	for i := range o.ports {
		m.unwatch(&o.ports[i])
	}
	delete(m.objects, o.name)
	delete(m.budgets, o.name)
}

// note takes note of the present state of an object. fresh says that backends which were
// not there before have come just now.
func (m *Monitor) note(ch lb.Change, fresh bool, now time.Time) lb.Change {
	o := m.objects[ch.Object]
	if len(ch.Services) == 0 {
		if o != nil {
			m.forget(o)
		}
		return ch
	}
	if o == nil {
		o = &object{name: ch.Object}
		m.objects[ch.Object] = o
	}
	o.health = ch.Health
	if !o.alike(ch.Services) {
		m.align(o, ch.Services)
	}
	for i, svc := range ch.Services {
		if p := &o.ports[i]; p.svc != svc {
			p.svc, p.out = svc, nil
			m.adopt(o, p, fresh, now)
		}
	}
	return ch
}

// alike tells whether o has the ports of svcs, in their order.
func (o *object) alike(svcs []*lb.Service) bool {
	return slices.EqualFunc(o.ports, svcs, func(p port, svc *lb.Service) bool { return p.svc.Name == svc.Name })
}

// align gives o the ports of svcs. Those that stay keep what is known of them.
func (m *Monitor) align(o *object, svcs []*lb.Service) {
	old := o.ports
	o.ports = make([]port, len(svcs))
	for i, svc := range svcs {
		o.ports[i].svc = &lb.Service{Name: svc.Name} // nobody's
		j := slices.IndexFunc(old, func(p port) bool { return p.svc != nil && p.svc.Name == svc.Name })
		if j >= 0 {
			o.ports[i], old[j] = old[j], port{}
		}
	}
	for i := range old {
		m.unwatch(&old[i])
	}
}

// adopt watches what p.svc wants watched, and makes what is handed on.
func (m *Monitor) adopt(o *object, p *port, fresh bool, now time.Time) {
	h := m.health(p.svc)
	switch {
	case active(&h):
		if p.watch == nil {
			p.watch = newWatch(o, p.svc.Name, h)
		}
	case p.watch != nil && h.Passive != lb.SwitchOn:
		m.unwatch(p)
	}
	if p.watch != nil {
		m.refresh(p, h, fresh, now)
	}
	p.makeOut(&h)
}

// health returns how svc is watched, complete.
func (m *Monitor) health(svc *lb.Service) lb.Health {
	h := svc.Health.Or(m.defaults).On(svc.Name.Proto)
	h.Interval = max(h.Interval, minPause)
	h.FastInterval = max(h.FastInterval, minPause)
	h.Rise, h.Fall = max(h.Rise, 1), max(h.Fall, 1)
	if h.Probe.Timeout <= 0 {
		h.Probe.Timeout = time.Second
	}
	return h
}

// minPause is the shortest time between two probes, whatever was asked for.
const minPause = 100 * time.Millisecond

func newWatch(o *object, name lb.ServiceName, h lb.Health) *watch {
	return &watch{object: o, name: name, health: h, backends: map[netip.AddrPort]*backend{}}
}

// refresh makes the watch of p one of the backends that p.svc has now.
func (m *Monitor) refresh(p *port, h lb.Health, fresh bool, now time.Time) {
	w := p.watch
	if w.health.Probe != h.Probe { // what was found out tells nothing of what is asked now
		for _, b := range w.backends {
			m.drop(b)
		}
	}
	changed := w.health != h
	w.health = h
	m.touched[w] = true // pools are others
	here := make(map[netip.AddrPort]bool, len(p.svc.Cluster.Backends))
	for _, sc := range scopes {
		for _, be := range p.svc.Pool(sc).Backends {
			here[be.Addr] = here[be.Addr] || be.Weight > 0
		}
	}
	for addr, b := range w.backends {
		if there := here[addr]; !there {
			m.drop(b)
		} else if changed {
			m.tell(b, event{kind: ticked}, now)
		}
	}
	if !active(&h) {
		return
	}
	for addr, takes := range here {
		if takes && w.backends[addr] == nil {
			m.begin(w, addr, fresh, now)
		}
	}
}

// begin watches a backend by probes, from a time on that differs between backends.
func (m *Monitor) begin(w *watch, addr netip.AddrPort, fresh bool, now time.Time) {
	b := m.watchOne(w, addr)
	spread := w.health.Interval
	if fresh {
		b.mark.Came = now
		spread = min(spread, w.health.FastInterval)
	}
	b.mark.Since = now
	share := maphash.Comparable(m.filter.seed, addr) % uint64(spread)
	b.wish = wish{now.Add(time.Duration(share)), true}
	m.schedule.join(b, aimAt(addr, &w.health))
}

// unwatch forgets what is known of a port's backends.
func (m *Monitor) unwatch(p *port) {
	w := p.watch
	if w == nil {
		return
	}
	p.watch = nil
	for _, b := range w.backends {
		m.drop(b)
	}
	m.stats.Ignored -= w.ignored
	delete(m.touched, w)
}

// port returns the port of a name; nil: there is none.
func (m *Monitor) port(name lb.ServiceName) *port {
	o := m.objects[name.Object]
	if o == nil {
		return nil
	}
	for i := range o.ports {
		if o.ports[i].svc.Name == name {
			return &o.ports[i]
		}
	}
	return nil
}

// Defaults returns how Services are watched that do not say it.
func (m *Monitor) Defaults() (d lb.Health) {
	m.locked(func() { d = m.defaults })
	return d
}

// SetDefaults changes how Services are watched that do not say it.
func (m *Monitor) SetDefaults(d lb.Health) {
	now := time.Now()
	m.locked(func() {
		if m.defaults == d {
			return
		}
		m.defaults = d
		for _, o := range m.objects {
			for i := range o.ports {
				p := &o.ports[i]
				old := p.out
				m.adopt(o, p, false, now)
				if p.out != old {
					m.markDirty(o)
				}
			}
		}
	})
	m.nudge()
}
