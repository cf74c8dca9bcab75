// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"

	"github.com/lbproxy/lbproxy/bench/internal/plot"
	"github.com/lbproxy/lbproxy/bench/internal/sim"
)

// The size of a plot in pixels.
const plotWidth, plotHeight = 900, 480

// draw returns a plot as a file.
func draw(title string, x, y plot.Axis, lines []plot.Line) []byte {
	for i := range lines {
		lines[i].Pen = plot.PenOf(i)
	}
	p := plot.Plot{Title: title, Width: plotWidth, Height: plotHeight, X: x, Y: y, Lines: lines, Alone: true}
	return []byte(p.SVG())
}

// plots returns SVG files by name: for each case the distribution of the sojourn
// time, and if there is a series its p99 and the watched group's share.
func plots(rep *sim.Report) map[string][]byte {
	out := map[string][]byte{}
	for i := 0; i < len(rep.Results); {
		first := rep.Results[i]
		var group []*sim.Result
		for ; i < len(rep.Results) && rep.Results[i].Load == first.Load && rep.Results[i].Nodes == first.Nodes; i++ {
			group = append(group, rep.Results[i])
		}
		name := fmt.Sprintf("%s-load%g-nodes%d", rep.Scenario.Name, first.Load, first.Nodes)
		title := fmt.Sprintf("%s, load %g, nodes %d: ", rep.Scenario.Name, first.Load, first.Nodes)
		out[name+"-sojourn.svg"] = plotSojourn(title+"requests that take longer", group)
		if len(first.Series) == 0 {
			continue
		}
		out[name+"-p99.svg"] = plotSeries(title+"p99 of each window", "p99, ms", true, group, func(p sim.Point) float64 { return 1000 * p.P99 })
		if w := rep.Scenario.Watch; w != "" {
			out[name+"-share.svg"] = plotSeries(title+"share of "+w, "requests over the fair share", false, group, func(p sim.Point) float64 { return p.Watch })
		}
	}
	return out
}

// plotSojourn draws the part of the requests that take longer than a time.
func plotSojourn(title string, results []*sim.Result) []byte {
	x := plot.Axis{Title: "sojourn time, ms", Log: true, Low: math.Inf(1), High: 0}
	y := plot.Axis{Title: "part of the requests", Log: true, Low: 1e-4, High: 1}
	var lines []plot.Line
	for _, r := range results {
		l := plot.Line{Label: r.Algorithm}
		for seconds, part := range r.Longer {
			if part >= y.Low {
				l.Points = append(l.Points, plot.Point{X: 1000 * seconds, Y: part})
			}
		}
		l.Points = plot.Thin(l.Points, 300)
		if n := len(l.Points); n > 0 {
			x.Low, x.High = min(x.Low, 1000*max(r.P50/20, 1e-9)), max(x.High, l.Points[n-1].X)
		}
		lines = append(lines, l)
	}
	if x.Low >= x.High {
		x.Low, x.High = 1, 10
	}
	return draw(title, x, y, lines)
}

// plotSeries draws a value of each window over time.
func plotSeries(title, what string, log bool, results []*sim.Result, value func(sim.Point) float64) []byte {
	x := plot.Axis{Title: "time, s", High: 1e-9}
	y := plot.Axis{Title: what, Log: log, High: 1e-9}
	if log {
		y.Low = math.Inf(1)
	}
	var lines []plot.Line
	for _, r := range results {
		l := plot.Line{Label: r.Algorithm}
		for _, p := range r.Series {
			v := value(p)
			if log && v <= 0 {
				continue
			}
			l.Points = append(l.Points, plot.Point{X: p.Time, Y: v})
			x.High, y.High, y.Low = max(x.High, p.Time), max(y.High, v), min(y.Low, v)
		}
		lines = append(lines, l)
	}
	if log && y.Low >= y.High {
		y.Low, y.High = 1, 10
	}
	return draw(title, x, y, lines)
}
