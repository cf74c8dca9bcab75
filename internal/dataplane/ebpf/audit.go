// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/cilium/ebpf"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// audit compares a part of the kernel's tables with what they should have.
type audit struct {
	*Dataplane
	what  string // the Service
	found []string
	errs  []error
}

// differs notes a difference; it returns true.
func (a *audit) differs(format string, args ...any) bool {
	a.found = append(a.found, a.what+fmt.Sprintf(format, args...))
	return true
}

// repair notes that a repair failed.
func (a *audit) repair(err error) {
	if err != nil {
		a.errs = append(a.errs, fmt.Errorf("repair %s%s: %w", a.what, a.found[len(a.found)-1], err))
	}
}

// Audit implements dataplane.Auditor. Services are compared one by one; each call also
// looks at some entries of hash tables that may belong to no Service, and goes on there
// in the next. Tables that are read are not changed, unless they differ. What the kernel
// itself writes - counters, bounds, connections - is not compared.
func (d *Dataplane) Audit(ctx context.Context, svcs []*dataplane.Service) ([]string, error) {
	a := &audit{Dataplane: d}
	for _, want := range svcs {
		if ctx.Err() != nil {
			break
		}
		a.what = want.Name.String() + ": "
		a.service(want)
	}
	a.what = ""
	a.strays()
	return a.found, errors.Join(errors.Join(a.errs...), ctx.Err())
}

// service compares what the kernel has for one Service, and repairs it.
func (a *audit) service(want *dataplane.Service) {
	a.mu.Lock()
	defer a.mu.Unlock()
	svc := a.services[want.Name]
	if svc == nil || svc.committed != want {
		return // it is another state that is in the kernel, or none
	}
	a.name(svc, want.Name)
	for sc := range lb.Scope(scopes) {
		a.records(svc, sc, want)
		a.pool(svc, sc, want)
	}
	a.terms(svc, want)
	for _, p := range want.Terms.SourceRanges {
		a.sourceRange(svc, sourceRangeOf(svc.id, p))
	}
	for _, f := range want.Frontends {
		key := frontendKeyOf(f.FrontendKey)
		if slices.Contains(svc.frontends, key) {
			a.frontend(key, frontendValueOf(f, svc.id, want.Terms))
		}
		if unknown := unknownKey(key.Addr); f.Type == lb.ClusterIP {
			a.frontend(unknown, unknownValue(key.Addr))
		}
	}
}

func (a *audit) name(svc *service, name lb.ServiceName) {
	var got serviceName
	err := a.maps.names().Lookup(svc.id, &got)
	want, _ := serviceNameOf(name) // it was stored before
	if (err != nil || got != want) && a.differs("service_names[%d] is not its name", svc.id) {
		a.repair(a.maps.put(a.maps.names(), svc.id, want))
	}
}

// records compares the backends of a pool.
func (a *audit) records(svc *service, sc lb.Scope, want *dataplane.Service) {
	for i, id := range svc.ids[sc] {
		addr := want.Pool(sc).Backends[i].Addr
		is := a.maps.backends[id]
		should := is
		should.Addr, should.Port = addrOf(addr.Addr()), swap16(addr.Port())
		should.Service, should.State = svc.id, uint8(lbBackendStateBACKEND_ACTIVE)
		if is != should && a.differs("backends[%d] is not that of %s", id, addr) {
			a.maps.wrote()
			a.maps.backends[id] = should
		}
	}
}

// pool compares a region and the word that leads to it.
func (a *audit) pool(svc *service, sc lb.Scope, want *dataplane.Service) {
	g, ids := svc.pools[sc], svc.ids[sc]
	if g.size > 0 {
		content := render(want.Balance, want.Pool(sc), ids)
		old := a.content(svc, sc)
		if !sameContent(old, content, uint32(len(ids))) && a.differs("slots from %d on are not its table", g.base) {
			a.maps.wrote()
			content[headMore].Backend = old[headMore].Backend
			copy(old, content)
		}
	}
	word := poolWord(g.base, uint32(len(ids)))
	if atomic.LoadUint64(&a.maps.services[svc.id].Pool[sc]) != word && a.differs("services[%d] has another pool", svc.id) {
		a.maps.storePool(svc.id, sc, word)
	}
}

func (a *audit) terms(svc *service, want *dataplane.Service) {
	before := a.maps.writes.Load()
	if a.setTerms(svc, want); a.maps.writes.Load() != before {
		a.differs("services[%d] or its backends had another session affinity or suspicion", svc.id)
	}
}

func (a *audit) sourceRange(svc *service, key lbSourceRange) {
	var bits uint32
	err := a.maps.ranges().Lookup(key, &bits) // the longest one that covers the key
	if (err != nil || bits != key.Len) && a.differs("source range %s is missing", prefixFrom(key.Addr, key.Len-32)) {
		a.repair(a.maps.put(a.maps.ranges(), key, key.Len))
	}
}

func (a *audit) frontend(key lbFrontendKey, want lbFrontend) {
	if a.frontends[key] != want {
		return // another Service has it by now
	}
	var got lbFrontend
	err := a.maps.frontends().Lookup(key, &got)
	if (err != nil || got != want) && a.differs("frontend %s is not in the table as it should be", frontendFrom(key)) {
		a.repair(a.maps.put(a.maps.frontends(), key, want))
	}
}

// auditEntries is how many entries one call looks at that may belong to no Service. A
// Service with one port has three: so many see all of them in about a pass over the
// Services, and hold a change up no longer than those.
const auditEntries = 64

// strays looks at some entries of one table, and removes those of no Service. The next
// call goes on behind them, or with the next table.
func (a *audit) strays() {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := &a.cursor
	var done bool
	switch c.table {
	case 0:
		done = walk(a, &c.it, a.maps.frontends(), a.strayFrontend)
	case 1:
		done = walk(a, &c.it, a.maps.names(), a.strayName)
	default:
		done = walk(a, &c.it, a.maps.ranges(), a.strayRange)
	}
	if done {
		c.it, c.table = nil, (c.table+1)%3
	}
}

// cursor is where a look for strays goes on.
type cursor struct {
	table int
	it    *ebpf.MapIterator // nil: at the table's beginning
}

func (a *audit) strayFrontend(key lbFrontendKey, _ lbFrontend) {
	if _, ok := a.frontends[key]; !ok && a.differs("frontend %s belongs to no Service", frontendFrom(key)) {
		a.repair(a.maps.remove(a.maps.frontends(), key))
	}
}

func (a *audit) strayName(id uint32, name serviceName) {
	n, err := name.parse()
	if svc := a.services[n]; (err != nil || svc == nil || svc.id != id) && a.differs("service_names[%d] belongs to no Service", id) {
		a.repair(a.maps.remove(a.maps.names(), id))
	}
}

func (a *audit) strayRange(key lbSourceRange, _ uint32) {
	p := prefixFrom(key.Addr, key.Len-32)
	if svc := a.byID(key.Service); (svc == nil || !svc.hasRange(p)) && a.differs("source range %s belongs to no Service", p) {
		a.repair(a.maps.remove(a.maps.ranges(), key))
	}
}

// byID returns the Service of an id, by the name that the kernel has for it; nil if it
// has none.
func (d *Dataplane) byID(id uint32) *service {
	if name, ok := d.nameOf(id); ok {
		return d.services[name]
	}
	return nil
}

// nameOf returns the name of the Service that has an id.
func (d *Dataplane) nameOf(id uint32) (lb.ServiceName, bool) {
	var name serviceName
	if d.maps.names().Lookup(id, &name) != nil {
		return lb.ServiceName{}, false
	}
	n, err := name.parse()
	svc := d.services[n]
	return n, err == nil && svc != nil && svc.id == id
}

// walk calls look for the next entries of a table. It returns true at the end. What is
// removed meanwhile may end it early: the next pass sees the rest.
func walk[K, V any](a *audit, it **ebpf.MapIterator, table *ebpf.Map, look func(K, V)) (done bool) {
	if *it == nil {
		*it = table.Iterate()
	}
	type entry struct {
		key   K
		value V
	}
	var e entry
	seen := make([]entry, 0, auditEntries)
	for len(seen) < auditEntries {
		if !(*it).Next(&e.key, &e.value) {
			done = true
			break
		}
		seen = append(seen, e)
	}
	if err := (*it).Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) { // the table changes
		a.errs = append(a.errs, fmt.Errorf("read map %s: %w", mapName(table), err))
	}
	for _, e := range seen { // not before: to remove what a key of the iterator is would end it
		look(e.key, e.value)
	}
	return done
}

var _ dataplane.Auditor = (*Dataplane)(nil)
