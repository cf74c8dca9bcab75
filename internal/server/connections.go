// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// limited chooses which Service ports have metrics of their own. One that was chosen stays
// it as long as it is there: a counter that comes and goes tells nothing. Its method may be
// called from any goroutine.
type limited struct {
	max int // 0: no limit

	mu     sync.Mutex
	chosen map[lb.ServiceName]bool
}

// setDetail changes what is told apart, and how many Service ports are.
func (c *collector) setDetail(detail string, services int) {
	c.detail.Store(&detail)
	c.services.mu.Lock()
	defer c.services.mu.Unlock()
	c.services.max = services
	c.services.chosen = nil
}

// of returns those of names, which are sorted, that are told, and how many are not.
func (l *limited) of(names []lb.ServiceName) (told map[lb.ServiceName]bool, untold int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	keep := make(map[lb.ServiceName]bool, len(l.chosen))
	for _, n := range names {
		if l.chosen[n] {
			keep[n] = true
		}
	}
	for _, n := range names {
		switch {
		case keep[n]:
		case l.max == 0 || len(keep) < l.max:
			keep[n] = true
		default:
			untold++
		}
	}
	l.chosen = keep
	return maps.Clone(keep), untold
}

// connections sends what is counted of connections, of as much as is to be told apart.
func (c *collector) connections(o out, st dataplane.Stats) {
	active := map[lb.ServiceName]uint64{}
	total := uint64(0)
	for _, b := range st.Backends {
		active[b.Service] += b.Live
		total += b.Live
	}
	o.number(&descTotal, float64(total))
	if st.Services != nil {
		o.number(&descOpened, float64(st.Total.Opened))
		o.number(&descClosed, float64(st.Total.Closed))
		o.number(&descFailed, float64(st.Total.Failed))
	}
	if *c.detail.Load() == DetailNode {
		return
	}
	for name := range st.Services { // those without a backend, too
		active[name] += 0
	}
	names := slices.SortedFunc(maps.Keys(active), lb.ServiceName.Compare)
	told, untold := c.services.of(names)
	o.number(&descUnlisted, float64(untold))
	for _, name := range names {
		if !told[name] {
			continue
		}
		shared := labels(descServiceActive.names, serviceValues(name)...)
		o <- &sample{&descServiceActive, shared, float64(active[name])}
		if counts, ok := st.Services[name]; ok {
			o <- &sample{&descServiceOpened, shared, float64(counts.Opened)}
			o <- &sample{&descServiceClosed, shared, float64(counts.Closed)}
			o <- &sample{&descServiceFailed, shared, float64(counts.Failed)}
		}
	}
	if *c.detail.Load() == DetailBackend {
		o.backends(st.Backends)
	}
}

// backends sends the counters of every backend. One that left and came back while it had
// connections is there twice, and shown once.
func (o out) backends(bs []dataplane.BackendStats) {
	slices.SortFunc(bs, func(a, b dataplane.BackendStats) int {
		return cmp.Or(a.Service.Compare(b.Service), a.Backend.Compare(b.Backend))
	})
	for i := 0; i < len(bs); i++ {
		b := bs[i]
		for ; i+1 < len(bs) && bs[i+1].Service == b.Service && bs[i+1].Backend == b.Backend; i++ {
			b.Live += bs[i+1].Live
			b.Opened += bs[i+1].Opened
			b.Closed += bs[i+1].Closed
			b.Failed += bs[i+1].Failed
			b.Latency = cmp.Or(b.Latency, bs[i+1].Latency)
		}
		shared := labels(descBackendActive.names, append([]string{b.Backend.String()}, serviceValues(b.Service)...)...)
		o <- &sample{&descBackendActive, shared, float64(b.Live)}
		if b.Counted {
			o <- &sample{&descBackendOpened, shared, float64(b.Opened)}
			o <- &sample{&descBackendClosed, shared, float64(b.Closed)}
			o <- &sample{&descBackendFailed, shared, float64(b.Failed)}
		}
		if b.Latency > 0 {
			o <- &sample{&descBackendTime, shared, b.Latency.Seconds()}
		}
	}
}

// serviceValues returns the values of the labels of a Service port.
func serviceValues(n lb.ServiceName) []string {
	return []string{n.Family.String(), n.Namespace, n.Port, n.Proto.String(), n.Name}
}
