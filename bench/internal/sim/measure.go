// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"github.com/lbproxy/lbproxy/internal/algo"

	"github.com/lbproxy/lbproxy/bench/internal/station"
)

// measure is what is observed in a run. Measured are the requests that come after
// the warm-up; the series shows all.
type measure struct {
	all         *histogram // sojourn times of measured requests
	failed      int        // measured
	timedOut    int        // measured
	ended       int        // measured, without failure
	picks, fair []float64  // by backend, measured: picks, and those that its weight has a claim to
	period      float64    // measured picks since the last settle
	busy        []float64  // by backend: core seconds
	span        float64    // seconds that were measured
	herd        herd
	churn       Churn
	owners      []int32 // of evenly spread hash values; see churned

	watch        []bool // by backend
	window       *histogram
	windowPicks  int
	windowPeriod float64 // picks since the last settle
	windowFailed int
	watchPicks   int
	watchFair    float64
	series       []Point
}

func newMeasure(backends int) measure {
	return measure{
		all: newHistogram(), window: newHistogram(),
		picks: make([]float64, backends), fair: make([]float64, backends),
		busy: make([]float64, backends), watch: make([]bool, backends),
		herd: herd{counts: make([]int32, backends), epochs: make([]int32, backends), epoch: 1},
	}
}

// pick counts a request that goes to a backend, of so many.
func (m *measure) pick(backend int32, members int, measured bool) {
	m.windowPicks++
	m.windowPeriod++
	if m.watch[backend] {
		m.watchPicks++
	}
	if measured {
		m.picks[backend]++
		m.period++
		m.herd.add(backend, members)
	}
}

// end counts a request that was answered.
func (m *measure) end(sojourn float64, measured bool) {
	m.window.add(sojourn)
	if measured {
		m.all.add(sojourn)
		m.ended++
	}
}

// fail counts a request that nobody took or that its backend refused or dropped.
func (m *measure) fail(measured bool) {
	m.windowFailed++
	if measured {
		m.failed++
	}
}

// timeout counts a request whose client gave up.
func (m *measure) timeout(measured bool) {
	m.windowFailed++
	if measured {
		m.timedOut++
	}
}

// usage is called with sign -1 when measuring begins and with 1 when it ends.
func (m *measure) usage(servers []station.Server, now, sign float64) {
	m.span += sign * now
	for b := range servers {
		servers[b].Advance(now)
		m.busy[b] += sign * servers[b].Busy
	}
}

// settle gives the members their claims for the picks since the last call. It is
// called before the members change and at the end of a window.
func (m *measure) settle(p *pool) {
	var total float64
	for _, mb := range p.members {
		total += float64(mb.Weight)
	}
	for i, mb := range p.members {
		if mb.Weight == 0 {
			continue
		}
		b, share := p.backends[i], float64(mb.Weight)/total
		m.fair[b] += m.period * share
		if m.watch[b] {
			m.watchFair += m.windowPeriod * share
		}
	}
	m.period, m.windowPeriod = 0, 0
}

// point ends a window of the series.
func (m *measure) point(now float64) {
	pt := Point{
		Time: now, Requests: m.windowPicks, Failed: m.windowFailed,
		Mean: m.window.mean(), P99: m.window.quantile(0.99), fair: m.watchFair,
	}
	if m.watchFair > 0 {
		pt.Watch = float64(m.watchPicks) / m.watchFair
	}
	m.series = append(m.series, pt)
	m.window.reset()
	m.windowPicks, m.windowFailed, m.watchPicks, m.watchFair = 0, 0, 0, 0
}

// Churn is what changes of the members did to a hash.
type Churn struct {
	Moved  float64 `json:"moved"`  // of all hash values, those with another backend; summed over the changes
	Excess float64 `json:"excess"` // of these, those whose two backends were both there before and after
}

// Point is one window of the series.
type Point struct {
	Time     float64 `json:"time"` // the window's end, seconds from the start
	Requests int     `json:"requests"`
	Mean     float64 `json:"mean"` // sojourn of what ended in it, seconds
	P99      float64 `json:"p99"`
	Failed   int     `json:"failed"`
	Watch    float64 `json:"watch"` // requests to the watched group over its fair share; 0 while it is absent
	fair     float64 // requests that the watched group had a claim to
}

// churned compares the owners of 65536 evenly spread hash values before and
// after. The backends' identities are the members' IDs.
func (m *measure) churned(before, after *algo.Table, p *pool) {
	old := m.owners
	owners := make([]int32, 1<<16)
	for i := range owners {
		owners[i] = -1
		if k := algo.Pick(*after, algo.Input{Hash: uint32(i)<<16 | 1<<15}); k >= 0 {
			owners[i] = p.backends[k]
		}
	}
	m.owners = owners
	if before.N == 0 || old == nil {
		return
	}
	was := make(map[int32]bool)
	for _, o := range old {
		was[o] = true
	}
	for i, o := range owners {
		if o == old[i] {
			continue
		}
		m.churn.Moved += 1.0 / (1 << 16)
		if was[o] && old[i] >= 0 && p.index[old[i]] >= 0 {
			m.churn.Excess += 1.0 / (1 << 16)
		}
	}
}

// herd measures how much picks bunch: the largest number that one backend got of
// as many successive picks as there are backends.
type herd struct {
	counts  []int32 // by backend
	epochs  []int32 // by backend: the window that counts belongs to
	epoch   int32
	picks   int
	most    int32
	sum     float64
	windows int
}

func (h *herd) add(backend int32, members int) {
	if h.epochs[backend] != h.epoch {
		h.epochs[backend], h.counts[backend] = h.epoch, 0
	}
	h.counts[backend]++
	h.most = max(h.most, h.counts[backend])
	if h.picks++; h.picks >= members {
		h.sum += float64(h.most)
		h.windows++
		h.epoch++
		h.picks, h.most = 0, 0
	}
}

// value returns the mean over the windows: 1 when all take turns, 3.1 at random
// among 16.
func (h *herd) value() float64 {
	if h.windows == 0 {
		return 0
	}
	return h.sum / float64(h.windows)
}
