// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"math"
	"slices"

	"github.com/lbproxy/lbproxy/bench/scenario"
	"github.com/lbproxy/lbproxy/internal/algo"
)

// Slow start as the agent does it: a backend that is added to others begins with
// a tenth of its weight, which grows in a straight line and in steps of a fiftieth
// of the duration, but at least 0.1 s.
const (
	minRamp     = (fullRamp + 9) / 10
	fullRamp    = 1 << 16
	rampSteps   = 50
	minRampStep = 0.1
	noSlowStart = -1
)

// timeline is what changes during a run.
type timeline struct {
	run     *run
	changes []scenario.Change // that are left, by time
	nextUp  float64           // when ramps grow next
	window  float64           // when the current window of the series ends
	first   map[string]int    // by group: its first backend
	count   map[string]int    // by group

	all     []algo.Member // every backend, there or not
	present []bool
	since   []float64 // when a backend's slow start began; noSlowStart: it is not starting
}

func newTimeline(r *run, members []algo.Member) timeline {
	n := len(r.servers)
	t := timeline{
		run: r, nextUp: never, window: never,
		first: map[string]int{}, count: map[string]int{},
		all: members, present: make([]bool, n), since: make([]float64, n),
	}
	t.changes = r.sc.InOrder()
	if w := r.sc.Window; w > 0 {
		t.window = w.Seconds()
	}
	b := 0
	for _, g := range r.sc.Backends {
		t.first[g.Name], t.count[g.Name] = b, g.Count
		for range g.Count {
			t.present[b], t.since[b] = !g.Absent, noSlowStart
			r.measure.watch[b] = g.Name == r.sc.Watch
			b++
		}
	}
	return t
}

// next returns the time of the next change.
func (t *timeline) next() float64 {
	at := t.nextUp
	if len(t.changes) > 0 {
		at = min(at, t.changes[0].At.Seconds())
	}
	return at
}

// end forgets what comes after the last arrival.
func (t *timeline) end() {
	t.closeWindow()
	t.changes, t.nextUp, t.window = nil, never, never
}

// step does what is due now: a change, or the end of a window.
func (t *timeline) step(change bool) error {
	if !change {
		t.closeWindow()
		t.window += t.run.sc.Window.Seconds()
		return nil
	}
	if len(t.changes) > 0 && t.changes[0].At.Seconds() <= t.run.now {
		c := t.changes[0]
		t.changes = t.changes[1:]
		t.apply(&c)
	}
	return t.rebuild()
}

// apply makes a change to the backends or the policy.
func (t *timeline) apply(c *scenario.Change) {
	r := t.run
	switch c.Action {
	case scenario.ChangeRate:
		r.arrivals.Rate = r.offered * c.Factor
		return
	case scenario.ChangeAlgorithm:
		a := *r.alg
		a.Name, a.Trial = c.Algorithm, nil
		r.alg = &a
		r.policy = r.newPolicy(r.alg)
		return
	}
	first := t.first[c.Backends]
	for b := first; b < first+t.count[c.Backends]; b++ {
		switch c.Action {
		case scenario.ChangeAdd:
			t.add(b)
		case scenario.ChangeRemove:
			t.present[b] = false
		case scenario.ChangeWeight:
			t.all[b].Weight = c.Weight
		default:
			t.alter(b, c)
		}
	}
}

// add lets a backend join. Nobody has measured it.
func (t *timeline) add(b int) {
	r := t.run
	t.present[b] = true
	if *r.alg.SlowStart > 0 {
		t.since[b] = r.now
	}
	for i := range r.nodes {
		r.nodes[i].seedLatency(&r.pool, int32(b), r.now)
	}
}

// alter changes how a backend works.
func (t *timeline) alter(b int, c *scenario.Change) {
	r := t.run
	s := &r.servers[b]
	s.Advance(r.now)
	original := t.groupOf(b).Speed
	switch c.Action {
	case scenario.ChangeSlow:
		s.Speed = original / c.Factor
	case scenario.ChangeFreeze, scenario.ChangeBlackhole:
		s.Speed = 0
	case scenario.ChangeRecover:
		s.Speed, s.Failed = original, false
	case scenario.ChangeFail:
		s.Failed = true
		for _, id := range s.Clear(r.now) {
			r.requests[id].failed = true
			r.done(id)
		}
	}
	r.agenda.set(b, s.Next())
}

func (t *timeline) groupOf(b int) *scenario.Group {
	i := slices.IndexFunc(t.run.sc.Backends, func(g scenario.Group) bool {
		return b >= t.first[g.Name] && b < t.first[g.Name]+t.count[g.Name]
	})
	return &t.run.sc.Backends[i]
}

// rebuild gives the policy the members of this moment.
func (t *timeline) rebuild() error {
	r := t.run
	p := &r.pool
	r.measure.settle(p)
	t.nextUp = never
	p.members, p.backends, p.index = nil, nil, make([]int32, len(t.all))
	for b, m := range t.all {
		p.index[b] = -1
		if !t.present[b] {
			continue
		}
		m.Ramp = t.ramp(b)
		p.index[b] = int32(len(p.members))
		p.members, p.backends = append(p.members, m), append(p.backends, int32(b))
	}
	return r.policy.build(p)
}

// ramp returns algo.Member.Ramp of a backend, and sees to its next step.
func (t *timeline) ramp(b int) uint16 {
	if t.since[b] == noSlowStart {
		return 0
	}
	total := t.run.alg.SlowStart.Seconds()
	step := max(total/rampSteps, minRampStep)
	steps := math.Floor((t.run.now-t.since[b])/step + 1e-6)
	switch passed := steps * step / total; {
	case passed < 1-1e-6:
		t.nextUp = min(t.nextUp, t.since[b]+(steps+1)*step)
		return uint16(minRamp + (fullRamp-minRamp)*passed)
	case t.run.alg.CatchUp && !t.caughtUp(b):
		t.nextUp = min(t.nextUp, t.since[b]+(steps+1)*step)
		return fullRamp - 1
	}
	t.since[b] = noSlowStart
	return 0
}

// caughtUp says whether a backend has as many connections for its weight as some
// backend that is not starting.
func (t *timeline) caughtUp(b int) bool {
	loads := t.run.global.loads
	for i, m := range t.all {
		established := t.present[i] && t.since[i] == noSlowStart && m.Weight > 0
		if established && uint64(loads[b].active)*uint64(m.Weight) >= uint64(loads[i].active)*uint64(t.all[b].Weight) {
			return true
		}
	}
	return false
}

// closeWindow adds a point to the series.
func (t *timeline) closeWindow() {
	if t.run.sc.Window > 0 {
		t.run.measure.settle(&t.run.pool)
		t.run.measure.point(t.run.now)
	}
}
