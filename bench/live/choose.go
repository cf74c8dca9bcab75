// SPDX-License-Identifier: Apache-2.0

package live

import (
	"math/rand/v2"
	"sync"

	"github.com/lbproxy/lbproxy/bench/scenario"
)

// chooser is a client that knows all backends, and needs no proxy: it takes them in turn,
// or knows how many requests each has, and how fast it is. It follows what joins and
// leaves at once. It does not know what fails.
type chooser struct {
	rule    string
	changes []scenario.Change // that are left

	mu      sync.Mutex
	rng     *rand.Rand
	groups  []*scenario.Group // by backend
	present []bool
	active  []int
	turn    int
}

func newChooser(sc *scenario.Scenario, rule string) *chooser {
	c := &chooser{rule: rule, rng: scenario.Stream(sc.Seed, scenario.StreamPicks)}
	for i := range sc.Backends {
		g := &sc.Backends[i]
		for range g.Count {
			c.groups, c.present = append(c.groups, g), append(c.present, !g.Absent)
		}
	}
	c.active = make([]int, len(c.groups))
	for _, ch := range sc.InOrder() {
		if ch.Action == scenario.ChangeAdd || ch.Action == scenario.ChangeRemove {
			c.changes = append(c.changes, ch)
		}
	}
	return c
}

// enter returns the backend of a request that begins at a time, or -1 if there is none.
func (c *chooser) enter(at float64) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.changes) > 0 && c.changes[0].At.Seconds() <= at {
		for i, g := range c.groups {
			if g.Name == c.changes[0].Backends {
				c.present[i] = c.changes[0].Action == scenario.ChangeAdd
			}
		}
		c.changes = c.changes[1:]
	}
	best := c.choose()
	if best >= 0 {
		c.active[best]++
	}
	return best
}

func (c *chooser) choose() int {
	if c.rule == "" {
		return c.next()
	}
	return c.least()
}

func (c *chooser) leave(backend int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.active[backend]--
}

// next is the next one in turn.
func (c *chooser) next() int {
	for range c.groups {
		i := c.turn % len(c.groups)
		c.turn++
		if c.present[i] && *c.groups[i].Weight > 0 {
			return i
		}
	}
	return -1
}

// least is the one with the fewest requests, or the shortest expected delay; of equal ones
// each is as likely.
func (c *chooser) least() int {
	best, least := -1, 0.0
	for _, i := range c.rng.Perm(len(c.groups)) {
		if !c.present[i] || *c.groups[i].Weight == 0 {
			continue
		}
		g := c.groups[i]
		cost := float64(c.active[i] + 1)
		if c.rule == scenario.OracleSED {
			cost = max(cost, float64(g.Cores)) / (g.Speed * float64(g.Cores))
		}
		if best < 0 || cost < least {
			best, least = i, cost
		}
	}
	return best
}
