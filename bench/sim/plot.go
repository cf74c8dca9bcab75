// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"strings"
)

// The size of a plot and of what is around its area, in pixels.
const (
	plotWidth, plotHeight                    = 900, 480
	plotLeft, plotTop, plotRight, plotBottom = 70, 40, 220, 50
)

// colours are those of Okabe and Ito, which most people can tell apart, and greys.
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"}

// axis maps values to a range of pixels.
type axis struct {
	title    string
	log      bool
	low      float64
	high     float64
	from, to float64 // pixels
}

func (a *axis) pixel(v float64) float64 {
	part := (v - a.low) / (a.high - a.low)
	if a.log {
		part = math.Log(v/a.low) / math.Log(a.high/a.low)
	}
	return a.from + min(max(part, 0), 1)*(a.to-a.from)
}

// ticks returns the values that are labelled: powers of ten, or five to ten round
// numbers.
func (a *axis) ticks() []float64 {
	var out []float64
	if a.log {
		for v := math.Pow(10, math.Ceil(math.Log10(a.low)-1e-9)); v <= a.high*1.0001; v *= 10 {
			out = append(out, v)
		}
		return out
	}
	step := math.Pow(10, math.Floor(math.Log10((a.high-a.low)/5)))
	for _, m := range []float64{5, 2} {
		if (a.high-a.low)/(step*m) >= 5 {
			step *= m
			break
		}
	}
	for k := math.Ceil(a.low / step); k*step <= a.high*1.0001; k++ {
		out = append(out, k*step)
	}
	return out
}

type point struct{ x, y float64 }

type line struct {
	label  string
	points []point
}

// draw returns an SVG of lines over two axes. It sets the axes' pixels.
func draw(title string, x, y axis, lines []line) []byte {
	x.from, x.to = plotLeft, plotWidth-plotRight
	y.from, y.to = plotHeight-plotBottom, plotTop
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, plotHeight)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/><text x="%d" y="22" font-size="15">%s</text>`+"\n", plotLeft, html.EscapeString(title))
	for _, v := range x.ticks() {
		p := x.pixel(v)
		fmt.Fprintf(&b, `<path d="M%.1f %.1fV%.1f" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="middle">%g</text>`+"\n", p, y.from, y.to, p, y.from+16, tidy(v))
	}
	for _, v := range y.ticks() {
		p := y.pixel(v)
		fmt.Fprintf(&b, `<path d="M%.1f %.1fH%.1f" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="end">%g</text>`+"\n", x.from, p, x.to, x.from-6, p+4, tidy(v))
	}
	fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", (x.from+x.to)/2, plotHeight-12, html.EscapeString(x.title))
	fmt.Fprintf(&b, `<text transform="translate(16 %.1f) rotate(-90)" text-anchor="middle">%s</text>`+"\n", (y.from+y.to)/2, html.EscapeString(y.title))
	for i, l := range lines {
		colour := colours[i%len(colours)]
		dash := ""
		if i >= len(colours) {
			dash = ` stroke-dasharray="5 3"`
		}
		var path strings.Builder
		for k, p := range l.points {
			fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(k, 1)], x.pixel(p.x), y.pixel(p.y))
		}
		legend := plotTop + 10 + 18*i
		fmt.Fprintf(&b, `<path d="%s" fill="none" stroke="%s" stroke-width="1.6"%s/>`+"\n", path.String(), colour, dash)
		fmt.Fprintf(&b, `<path d="M%d %dh22" stroke="%s" stroke-width="3"%s/><text x="%d" y="%d">%s</text>`+"\n",
			plotWidth-plotRight+10, legend, colour, dash, plotWidth-plotRight+38, legend+4, html.EscapeString(l.label))
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// tidy removes what floating point adds to a round number.
func tidy(v float64) float64 { return math.Round(v*1e9) / 1e9 }

// plots returns SVG files by name: for each case the distribution of the sojourn
// time, and if there is a series its p99 and the watched group's share.
func plots(rep *Report) map[string][]byte {
	out := map[string][]byte{}
	for i := 0; i < len(rep.Results); {
		first := rep.Results[i]
		var group []*Result
		for ; i < len(rep.Results) && rep.Results[i].Load == first.Load && rep.Results[i].Nodes == first.Nodes; i++ {
			group = append(group, rep.Results[i])
		}
		name := fmt.Sprintf("%s-load%g-nodes%d", rep.Scenario.Name, first.Load, first.Nodes)
		title := fmt.Sprintf("%s, load %g, nodes %d: ", rep.Scenario.Name, first.Load, first.Nodes)
		out[name+"-sojourn.svg"] = plotSojourn(title+"requests that take longer", group)
		if len(first.Series) == 0 {
			continue
		}
		out[name+"-p99.svg"] = plotSeries(title+"p99 of each window", "p99, ms", true, group, func(p Point) float64 { return 1000 * p.P99 })
		if w := rep.Scenario.Watch; w != "" {
			out[name+"-share.svg"] = plotSeries(title+"share of "+w, "requests over the fair share", false, group, func(p Point) float64 { return p.Watch })
		}
	}
	return out
}

// plotSojourn draws the part of the requests that take longer than a time.
func plotSojourn(title string, results []*Result) []byte {
	x := axis{title: "sojourn time, ms", log: true, low: never, high: 0}
	y := axis{title: "part of the requests", log: true, low: 1e-4, high: 1}
	var lines []line
	for _, r := range results {
		l := line{label: r.Algorithm}
		above := float64(r.sojourn.n)
		for b, c := range r.sojourn.counts {
			if above -= float64(c); c > 0 && above/float64(r.sojourn.n) >= y.low {
				l.points = append(l.points, point{1000 * bucketStart(b+1), above / float64(r.sojourn.n)})
			}
		}
		l.points = thin(l.points)
		if n := len(l.points); n > 0 {
			x.low, x.high = min(x.low, 1000*max(r.P50/20, 1e-9)), max(x.high, l.points[n-1].x)
		}
		lines = append(lines, l)
	}
	if x.low >= x.high {
		x.low, x.high = 1, 10
	}
	return draw(title, x, y, lines)
}

// thin leaves about 300 points.
func thin(points []point) []point {
	every := len(points)/300 + 1
	var out []point
	for i, p := range points {
		if i%every == 0 || i == len(points)-1 {
			out = append(out, p)
		}
	}
	return out
}

// plotSeries draws a value of each window over time.
func plotSeries(title, what string, log bool, results []*Result, value func(Point) float64) []byte {
	x := axis{title: "time, s", high: 1e-9}
	y := axis{title: what, log: log, high: 1e-9}
	if log {
		y.low = never
	}
	var lines []line
	for _, r := range results {
		l := line{label: r.Algorithm}
		for _, p := range r.Series {
			v := value(p)
			if log && v <= 0 {
				continue
			}
			l.points = append(l.points, point{p.Time, v})
			x.high, y.high, y.low = max(x.high, p.Time), max(y.high, v), min(y.low, v)
		}
		lines = append(lines, l)
	}
	if log && y.low >= y.high {
		y.low, y.high = 1, 10
	}
	return draw(title, x, y, lines)
}
