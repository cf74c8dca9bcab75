// SPDX-License-Identifier: Apache-2.0

package health

import (
	"cmp"
	"slices"
)

// Verdicts returns what is thought of all backends that are watched, sorted by Service and
// backend.
func (m *Monitor) Verdicts() []Verdict {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []Verdict
	for _, o := range m.objects {
		for i := range o.ports {
			if w := o.ports[i].watch; w != nil {
				for _, b := range w.backends {
					list = append(list, b.verdict())
				}
			}
		}
	}
	slices.SortFunc(list, func(a, b Verdict) int {
		return cmp.Or(a.Service.Compare(b.Service), a.Backend.Compare(b.Backend))
	})
	return list
}

// verdict returns what is thought of b.
func (b *backend) verdict() Verdict {
	v := Verdict{
		Service: b.watch.name, Backend: b.addr, State: b.mark.State, Reason: b.mark.Reason, Since: b.mark.Since,
		Kind: b.watch.health.Probe.Kind, Ejections: b.mark.Ejections, Until: b.mark.Until,
	}
	if v.State == Ejected {
		v.Ignored = b.watch.why(b.addr)
	}
	return v
}

// Stats returns what there is to count.
func (m *Monitor) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Stats{
		Backends:    map[State]int{},
		Transitions: map[[2]State]uint64{},
		Ejections:   map[string]uint64{},
		Ignored:     m.stats.Ignored,
		Targets:     len(m.schedule.aims),
	}
	for _, state := range []State{Unknown, Healthy, Suspect, Ejected} {
		s.Backends[state] = m.stats.Backends[state]
	}
	for k, n := range m.stats.Transitions {
		s.Transitions[k] = n
	}
	for k, n := range m.stats.Ejections {
		s.Ejections[k] = n
	}
	return s
}
