// SPDX-License-Identifier: Apache-2.0

package live

import (
	"slices"

	"github.com/lbproxy/lbproxy/bench/result"
	"github.com/lbproxy/lbproxy/bench/scenario"
)

// curves are measures against the number of Services.
type curves struct {
	sc     *scenario.Scenario
	scales []result.Scale
}

func newCurves(p *plan) *curves {
	c := &curves{sc: p.sc}
	if len(p.sc.Live.Services) < 2 {
		return c
	}
	what := map[string]string{
		scenario.Connect: "connections per second", scenario.Exchange: "exchanges per second",
		scenario.Streamed: "bytes per second", scenario.Packets: "packets per second",
	}[p.sc.Live.Traffic]
	c.scales = []result.Scale{{Name: p.sc.Name + ": " + what, Unit: "1/s", X: "Services"}}
	if p.sc.Live.Traffic == scenario.Connect {
		c.scales = append(c.scales, result.Scale{Name: p.sc.Name + ": first packet until it is answered, median", Unit: "s", X: "Services"})
	}
	return c
}

// add adds the point of a number of Services to each arm's curves.
func (c *curves) add(services int, arms []result.Arm) {
	for k := range c.scales {
		for i := range arms {
			values := make([]float64, len(arms[i].Blocks))
			for j := range arms[i].Blocks {
				b := &arms[i].Blocks[j]
				values[j] = figure(c.sc, b)
				if k == 1 {
					values[j] = float64(b.Connect.ValueAtQuantile(50)) / 1e9
				}
			}
			s := c.series(k, arms[i].Label())
			s.Points = append(s.Points, result.Point{X: float64(services), Values: values})
		}
	}
}

// series is that of an arm, which may have been left out before.
func (c *curves) series(scale int, arm string) *result.Series {
	all := &c.scales[scale].Series
	i := slices.IndexFunc(*all, func(s result.Series) bool { return s.Arm == arm })
	if i < 0 {
		i = len(*all)
		*all = append(*all, result.Series{Arm: arm})
	}
	return &(*all)[i]
}
