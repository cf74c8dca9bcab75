// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"html/template"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/bench/internal/plot"
	"github.com/lbproxy/lbproxy/bench/internal/sim"
	"github.com/lbproxy/lbproxy/bench/internal/stats"
	"github.com/lbproxy/lbproxy/bench/result"
)

// figure is a plot drawn twice, for a wide page and for a phone.
type figure struct {
	Title, Note  string
	Wide, Narrow template.HTML
	Legend       []legend
	Events       []string
}

type legend struct {
	Swatch template.HTML
	Label  string
}

// svg trusts what package plot drew: it escapes what it writes.
func svg(s string) template.HTML { return template.HTML(s) }

// drawn draws a plot for both widths.
func drawn(p plot.Plot, note string, events []result.Event) figure {
	f := figure{Title: p.Title, Note: note}
	for i, e := range events {
		p.Marks = append(p.Marks, plot.Mark{X: e.At, Label: fmt.Sprint(i + 1)})
		f.Events = append(f.Events, fmt.Sprintf("%s: %s", plot.Time(e.At), e.What))
	}
	for _, l := range p.Lines {
		f.Legend = append(f.Legend, legend{svg(l.Pen.Swatch()), l.Label})
	}
	p.Width, p.Height = 560, 320
	f.Wide = svg(p.SVG())
	p.Width, p.Height = 350, 270
	f.Narrow = svg(p.SVG())
	return f
}

// pens gives each arm of a scenario its own: the first of lbproxy the first, direct the
// plain one, and the simulator that of the arm that it simulates.
func pens(sc *scene) []plot.Pen {
	out := make([]plot.Pen, len(sc.Arms))
	order := make([]int, len(sc.Arms))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return rank(&sc.Arms[a]) - rank(&sc.Arms[b]) })
	next, plain := 0, 0
	for _, i := range order {
		switch rank(&sc.Arms[i]) {
		case rankDirect:
			out[i] = plot.Pen{Colour: plot.Plain, Dash: plain}
			plain++
		case rankSimulator:
			k := liveOf(sc, i)
			if k >= 0 {
				out[i] = plot.Pen{Colour: out[k].Colour, Dash: 2}
			}
		default:
			out[i] = plot.PenOf(next)
			next++
		}
	}
	return out
}

const (
	rankEBPF = iota
	rankOther
	rankDirect
	rankSimulator
)

func rank(a *result.Arm) int {
	switch a.Name {
	case "lbproxy-ebpf":
		return rankEBPF
	case "direct":
		return rankDirect
	case sim.Name:
		return rankSimulator
	}
	return rankOther
}

// cumulative draws which part of the requests had been answered by which time, so that the
// slow ones are seen: the axis goes by powers of ten of what is left.
func cumulative(sc *scene, title, what string, of func(*result.Block) *result.Histogram) (figure, bool) {
	const last = 1e4
	x := plot.Axis{Title: what, Log: true, Low: math.Inf(1), Label: plot.Time}
	y := plot.Axis{Title: "percentile", Log: true, Low: 1, High: last, At: []float64{2, 10, 100, 1000, 10000}, Label: func(v float64) string {
		return fmt.Sprintf("p%.4g", 100*(1-1/v))
	}}
	pen := pens(sc)
	var lines []plot.Line
	for i := range sc.Arms {
		h := of(sc.whole[i])
		if h == nil || h.TotalCount() == 0 {
			continue
		}
		l := plot.Line{Label: sc.Arms[i].Label(), Pen: pen[i]}
		for v := 1.02; v <= last && v <= float64(h.TotalCount()); v *= 1.08 {
			l.Points = append(l.Points, plot.Point{X: stats.Quantile(h.Histogram, 1-1/v), Y: v})
		}
		x.Low, x.High = plot.Span(x.Low, x.High, l.Points, func(p plot.Point) []float64 { return []float64{p.X} })
		lines = append(lines, l)
	}
	if len(lines) == 0 {
		return figure{}, false
	}
	x.Low, x.High = x.Low*0.9, x.High*1.1
	p := plot.Plot{Title: title, X: x, Y: y, Lines: lines}
	return drawn(p, "Further left is faster. The axis magnifies the tail: above p99 is one request in a hundred.", nil), true
}

// overTime draws a value of each window.
func overTime(sc *scene, p plot.Plot, note string, live bool, value func(result.Window) float64) (figure, bool) {
	p.X = plot.Axis{Title: "time, s"}
	y := &p.Y
	y.Low, y.High = math.Inf(1), math.Inf(-1)
	pen := pens(sc)
	for i := range sc.Arms {
		if live && sc.Arms[i].Name == sim.Name {
			continue
		}
		l := plot.Line{Label: sc.Arms[i].Label(), Pen: pen[i]}
		for _, w := range sc.windows[i] {
			v := value(w)
			if math.IsNaN(v) || y.Log && v <= 0 {
				continue
			}
			l.Points = append(l.Points, plot.Point{X: w.Start, Y: v})
			p.X.High, y.Low, y.High = max(p.X.High, w.Start), min(y.Low, v), max(y.High, v)
		}
		if len(l.Points) > 1 {
			l.Points = plot.Thin(l.Points, 400)
			p.Lines = append(p.Lines, l)
		}
	}
	if len(p.Lines) == 0 || y.High <= 0 {
		return figure{}, false
	}
	if y.Log {
		y.Low, y.High = y.Low*0.8, y.High*1.25
	} else {
		y.Low, y.High = 0, y.High*1.05
	}
	return drawn(p, note, sc.Events), true
}

// figuresOf are all of a scenario.
func figuresOf(sc *scene) []figure {
	var out []figure
	add := func(f figure, ok bool) {
		if ok {
			out = append(out, f)
		}
	}
	add(cumulative(sc, "Latency", "from the intended start to the last byte", latency))
	add(cumulative(sc, "Time to connect", "from the intended start until it is open", connect))
	add(overTime(sc, plot.Plot{Title: "p99 over time", Y: plot.Axis{Title: "p99 of a window", Log: true, Label: plot.Time}},
		"The median of all blocks, by when requests were meant to begin.", false, func(w result.Window) float64 { return w.P99 }))
	add(overTime(sc, plot.Plot{Title: "Failures over time", Y: plot.Axis{Title: "failed of a window, %"}},
		"Of the requests that were meant to begin in a window, in all blocks.", true,
		func(w result.Window) float64 { return per(100*float64(w.Failed), float64(w.Requests)) }))
	for _, group := range watched(sc) {
		add(overTime(sc, plot.Plot{Title: "Share of " + group + " over time", Y: plot.Axis{Title: "of the requests, %"}},
			"The median of all blocks.", false, func(w result.Window) float64 {
				if s, ok := w.Share[group]; ok {
					return 100 * s
				}
				return nan
			}))
	}
	add(sharesFigure(sc))
	return out
}

// watched are the groups whose share is worth a plot: those of a scenario with several,
// but the largest, which is the rest.
func watched(sc *scene) []string {
	count := map[string]int{}
	for _, b := range sc.whole {
		for _, s := range b.Backends {
			count[s.Group]++
		}
	}
	var groups []string
	for g := range count {
		groups = append(groups, g)
	}
	slices.SortFunc(groups, func(a, b string) int {
		if count[a] != count[b] {
			return count[a] - count[b]
		}
		return compareText(a, b)
	})
	if len(groups) < 2 {
		return nil
	}
	return groups[:min(2, len(groups)-1)]
}

// sharesFigure draws each backend's share against what its weight has a claim to.
func sharesFigure(sc *scene) (figure, bool) {
	s := plot.Strips{Title: "Shares of the backends"}
	var groups []string
	sizes := map[string]int{}
	for i := range sc.Arms {
		b := sc.whole[i]
		f := fairness(b)
		if math.IsNaN(f.Jain) {
			continue
		}
		row := plot.Strip{Label: sc.Arms[i].Label(), Note: fmt.Sprintf("max/mean %.3g, CV %.3g, Jain %.3g", f.Max, f.CV, f.Jain), Short: fmt.Sprintf("CV %.3g", f.CV)}
		var counts, weights []float64
		for _, s := range b.Backends {
			if s.Weight == 0 {
				continue
			}
			counts, weights = append(counts, float64(s.Requests)), append(weights, s.Weight)
			g := slices.Index(groups, s.Group)
			if g < 0 {
				g = len(groups)
				groups = append(groups, s.Group)
			}
			row.Groups = append(row.Groups, g)
			sizes[s.Group]++
		}
		row.Values = stats.Shares(counts, weights)
		s.Rows = append(s.Rows, row)
	}
	if len(s.Rows) == 0 {
		return figure{}, false
	}
	f := figure{Title: s.Title, Note: "One bar for each backend: its requests over those that its weight has a claim to, in the whole run; the dashed line is a fair share."}
	for i, g := range groups {
		s.Colours = append(s.Colours, i)
		if sizes[g] == slices.Max(slices.Collect(maps.Values(sizes))) {
			s.Colours[i] = plot.Plain // the rest
		}
		f.Legend = append(f.Legend, legend{svg(plot.Box(s.Colours[i])), g})
	}
	s.Width = 560
	f.Wide = svg(s.SVG())
	s.Width = 350
	f.Narrow = svg(s.SVG())
	return f, true
}

// scaleFigure draws a measure against a number, with the spread of the blocks.
func scaleFigure(s *result.Scale) figure {
	x := plot.Axis{Title: s.X, Log: true, Low: math.Inf(1), Label: plot.Short}
	y := plot.Axis{Title: s.Unit, Low: math.Inf(1)}
	var lines []plot.Line
	next := 0
	for _, series := range s.Series {
		l := plot.Line{Label: series.Arm, Dots: true}
		if strings.HasPrefix(series.Arm, "direct") {
			l.Pen = plot.Pen{Colour: plot.Plain}
		} else {
			l.Pen = plot.PenOf(next)
			next++
		}
		for _, p := range series.Points {
			if len(p.Values) == 0 {
				continue
			}
			l.Points = append(l.Points, plot.Point{X: p.X, Y: stats.Median(p.Values), Low: slices.Min(p.Values), High: slices.Max(p.Values)})
			if !slices.Contains(x.At, p.X) {
				x.At = append(x.At, p.X)
			}
		}
		x.Low, x.High = plot.Span(x.Low, x.High, l.Points, func(p plot.Point) []float64 { return []float64{p.X} })
		y.Low, y.High = plot.Span(y.Low, y.High, l.Points, func(p plot.Point) []float64 { return []float64{p.Low, p.High} })
		lines = append(lines, l)
	}
	slices.Sort(x.At)
	if x.Low == x.High {
		x.Low, x.High = x.Low*0.9, x.High*1.1
	}
	if y.Log = y.Low > 0 && y.High > 10*y.Low; y.Log {
		y.Low, y.High = y.Low*0.8, y.High*1.25
	} else {
		y.Low, y.High = 0, y.High*1.08
	}
	if s.Unit == "s" {
		y.Title, y.Label = s.Name, plot.Time
	}
	return drawn(plot.Plot{Title: upper(s.Name), X: x, Y: y, Lines: lines}, "Medians, and how far the blocks spread.", nil)
}

// upper begins a text with a capital letter.
func upper(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
