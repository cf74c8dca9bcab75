// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/bench/internal/plot"
	"github.com/lbproxy/lbproxy/bench/internal/sim"
	"github.com/lbproxy/lbproxy/bench/internal/stats"
	"github.com/lbproxy/lbproxy/bench/result"
)

// table is shown by the page and by Markdown. The first column is text, and so are those
// in Text; the others are numbers.
type table struct {
	Head []string
	Text []bool // by column
	Rows [][]string
	Deck bool // on a phone each row is a card
}

// markdown writes the table, or says that there is nothing.
func (t *table) markdown() string {
	if t == nil || len(t.Rows) == 0 {
		return "None.\n"
	}
	var b strings.Builder
	line := func(cells []string) {
		for _, c := range cells {
			b.WriteString("| " + strings.ReplaceAll(c, "|", `\|`) + " ")
		}
		b.WriteString("|\n")
	}
	line(t.Head)
	for _, text := range t.Text {
		b.WriteString(map[bool]string{true: "|---", false: "|---:"}[text])
	}
	b.WriteString("|\n")
	for _, r := range t.Rows {
		line(r)
	}
	return b.String()
}

// comparisonTable has the comparisons that are wanted; nil if there are none.
func comparisonTable(all []Comparison, want func(*Comparison) bool) *table {
	t := &table{
		Head: []string{"scenario", "measure", "lbproxy", "", "beside", "", "times as good", "95 % interval"},
		Text: []bool{true, true, true, false, true, false, false, false},
		Deck: true,
	}
	for i := range all {
		c := &all[i]
		if !want(c) {
			continue
		}
		t.Rows = append(t.Rows, []string{c.Scenario, c.Measure.Name, c.Arm, c.Measure.write(c.Value), c.Peer, c.Measure.write(c.Other), c.gain(), c.interval()})
	}
	if t.Rows == nil {
		return nil
	}
	return t
}

// gain writes how much better lbproxy is: 1.2 times, or so many fewer.
func (c *Comparison) gain() string {
	if c.Measure.counts {
		return c.fewer(c.Gain.Median)
	}
	return factor(c.Gain.Median) + " ×"
}

// fewer writes a difference of counts.
func (c *Comparison) fewer(n float64) string {
	if n < 0 {
		return c.Measure.write(-n) + " more"
	}
	return c.Measure.write(n) + " fewer"
}

func (c *Comparison) interval() string {
	if c.Measure.counts {
		return interval(c.Gain, c.fewer)
	}
	return interval(c.Gain, factor)
}

// scenarioTable has every arm of a scenario by some of its measures, and the ratio to direct.
func scenarioTable(sc *scene, ms []*measure) *table {
	t := &table{Head: []string{"arm"}, Text: []bool{true}}
	direct := sc.find("direct")
	main := mainMeasure(sc)
	if direct >= 0 && main != nil {
		t.Head, t.Text = append(t.Head, main.Title+" / direct", "95 % interval"), append(t.Text, false, false)
	}
	for _, m := range ms {
		t.Head, t.Text = append(t.Head, m.Title), append(t.Text, false)
	}
	for i := range sc.Arms {
		row := []string{sc.Arms[i].Label()}
		if direct >= 0 && main != nil {
			e := stats.EstimateOf(stats.Pairs(sc.of(i, main), sc.of(direct, main), stats.Ratio))
			if sc.Arms[i].Name == sim.Name || i == direct {
				row = append(row, "", "")
			} else {
				row = append(row, factor(e.Median), interval(e, factor))
			}
		}
		for _, m := range ms {
			row = append(row, m.write(stats.Median(sc.of(i, m))))
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// mainMeasure is what a scenario is about.
func mainMeasure(sc *scene) *measure {
	if ms := sc.judged(); len(ms) > 0 {
		return ms[0]
	}
	return nil
}

// scaleTable has a column for each curve.
func scaleTable(s *result.Scale) *table {
	t := &table{Head: []string{s.X}, Text: []bool{false}}
	write := decimal
	if s.Unit == "s" {
		write = plot.Time
	}
	var xs []float64
	for _, series := range s.Series {
		t.Head, t.Text = append(t.Head, series.Arm), append(t.Text, false)
		for _, p := range series.Points {
			if !slices.Contains(xs, p.X) {
				xs = append(xs, p.X)
			}
		}
	}
	slices.Sort(xs)
	for _, x := range xs {
		row := []string{plot.Number(x)}
		for _, series := range s.Series {
			cell := "–"
			if i := slices.IndexFunc(series.Points, func(p result.Point) bool { return p.X == x }); i >= 0 {
				cell = write(stats.Median(series.Points[i].Values))
			}
			row = append(row, cell)
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// rowsTable has the rows of a group.
func rowsTable(rows []result.Row, group string) *table {
	t := &table{
		Head: []string{"what", "median", "baseline", "times", "result", "95 % interval", "target", "met"},
		Text: []bool{true, false, false, false, false, false, false, true},
		Deck: true,
	}
	for _, r := range rows {
		if r.Group != group {
			continue
		}
		sign := map[string]string{result.AsDifference: "− ", result.AsRatio: "/ ", result.AsInverse: `\ `}[r.How]
		t.Rows = append(t.Rows, []string{
			r.Name, decimal(stats.Median(r.Values)) + " " + r.Unit, decimal(stats.Median(r.Base)),
			decimal(stats.Median(stats.Pairs(r.Values, r.Base, stats.Ratio))),
			sign + decimal(r.Result.Median), interval(r.Result, decimal), r.Target, r.Met,
		})
	}
	return t
}

// predictionTable has the simulator beside the lab; nil if nothing was simulated.
func predictionTable(scenes []*scene) *table {
	t := &table{
		Head: []string{"scenario", "algorithm", "live", "p99", "simulated", "off by", "within 15 %"},
		Text: []bool{true, true, true, false, false, false, true},
		Deck: true,
	}
	for _, sc := range scenes {
		for _, p := range predictions(sc) {
			verdict := map[bool]string{true: "yes", false: "no"}[p.Within]
			if p.Why != "" {
				verdict = "does not apply: " + p.Why
			}
			t.Rows = append(t.Rows, []string{p.Scenario, p.Algorithm, p.Arm, plot.Time(p.Live), plot.Time(p.Simulated), fmt.Sprintf("%+.1f %%", 100*p.Off), verdict})
		}
	}
	if t.Rows == nil {
		return nil
	}
	return t
}
