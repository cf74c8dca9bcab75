// SPDX-License-Identifier: Apache-2.0

package plot

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"strings"
)

// Colours are those of Okabe and Ito, which most people can tell apart, and greys.
var Colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"}

// Plain is the colour of what others are compared with: the last one.
const Plain = 7

// dashes tell lines apart that have the same colour.
var dashes = []string{"", "7 3", "2 3", "9 3 2 3"}

// Pen is the look of a line: its colour and its dashes. Each has a number that begins at 0
// and begins again when there are no more.
type Pen struct{ Colour, Dash int }

// PenOf is the pen of the i-th of many lines.
func PenOf(i int) Pen { return Pen{i % Plain, i / Plain % len(dashes)} }

// attributes are those of something that is drawn with the pen.
func (p Pen) attributes() string {
	s := fmt.Sprintf(`class="stroke%d"`, p.Colour%len(Colours))
	if d := dashes[p.Dash%len(dashes)]; d != "" {
		s += fmt.Sprintf(` stroke-dasharray="%s"`, d)
	}
	return s
}

// Swatch is a piece of the line, for a legend.
func (p Pen) Swatch() string {
	return fmt.Sprintf(`<svg class="swatch" width="26" height="10" viewBox="0 0 26 10" aria-hidden="true"><path d="M1 5H25" fill="none" stroke-width="3" %s/></svg>`, p.attributes())
}

// Style is the look of all classes.
var Style = style()

func style() string {
	var b strings.Builder
	for i, c := range Colours {
		fmt.Fprintf(&b, ".stroke%d{stroke:%s}.fill%d{fill:%s}", i, c, i, c)
	}
	b.WriteString(".grid{stroke:#ddd;fill:none}.axis{stroke:#888;fill:none}.ink{fill:#222}.dim{fill:#555}.mark{stroke:#b00020;fill:none}.marked{fill:#b00020}.ground{fill:#fff}")
	return b.String()
}

// Point is a place in a plot. Low and High are how far its value spreads; both 0: nothing
// is known.
type Point struct{ X, Y, Low, High float64 }

// Line is a curve.
type Line struct {
	Label  string
	Pen    Pen
	Points []Point
	Dots   bool // at the points, with their spread
	Steps  bool // a value holds until the next
}

// Mark is a moment that matters, drawn as a vertical line.
type Mark struct {
	X     float64
	Label string // short
}

// Plot is lines over two axes.
type Plot struct {
	Title         string
	Width, Height float64
	X, Y          Axis
	Lines         []Line
	Marks         []Mark
	// Alone makes a file of its own: with its title, a legend and its Style.
	Alone bool
}

const (
	legendWidth = 210
	fontSize    = 12
)

// SVG draws the plot.
func (p *Plot) SVG() string {
	x, y := p.X, p.Y
	left, top, right := p.margins(&y)
	x.From, x.To = left, p.Width-right
	y.From, y.To = p.Height-46, top
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" width="%g" height="%g" font-family="system-ui, sans-serif" font-size="%d" role="img" aria-label="%s">`+"\n",
		p.Width, p.Height, p.Width, p.Height, fontSize, html.EscapeString(p.Title))
	if p.Alone {
		fmt.Fprintf(&b, `<style>%s</style><rect class="ground" width="100%%" height="100%%"/><text class="ink" x="%g" y="22" font-size="15">%s</text>`+"\n",
			Style, left, html.EscapeString(p.Title))
	}
	p.drawAxes(&b, &x, &y)
	for _, m := range p.Marks {
		at := x.Pixel(m.X)
		fmt.Fprintf(&b, `<path class="mark" stroke-dasharray="4 3" d="M%.1f %.1fV%.1f"/><text class="marked" font-weight="bold" font-size="11" x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n",
			at, y.From, y.To, at, y.To-4, html.EscapeString(m.Label))
	}
	for i, l := range p.Lines {
		l.draw(&b, &x, &y)
		if p.Alone {
			row := top + 10 + 18*float64(i)
			fmt.Fprintf(&b, `<path d="M%.1f %.1fh22" stroke-width="3" %s/><text class="ink" x="%.1f" y="%.1f">%s</text>`+"\n",
				x.To+10, row, l.Pen.attributes(), x.To+38, row+4, html.EscapeString(l.Label))
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// margins are what the area leaves free: for labels as long as they are, and a legend.
func (p *Plot) margins(y *Axis) (left, top, right float64) {
	longest := 0
	for _, v := range y.Ticks() {
		longest = max(longest, len([]rune(y.label(v))))
	}
	left, top, right = 30+6.6*float64(longest), 18, 14
	if p.Alone {
		top, right = 40, legendWidth
	}
	return left, top, right
}

func (p *Plot) drawAxes(b *bytes.Buffer, x, y *Axis) {
	free := x.From - 100 // where the last label ended
	for _, v := range x.Ticks() {
		at, label := x.Pixel(v), x.label(v)
		half := 3.4 * float64(len([]rune(label)))
		middle := min(at, p.Width-half)
		fmt.Fprintf(b, `<path class="grid" d="M%.1f %.1fV%.1f"/>`, at, y.From, y.To)
		if middle-half > free {
			fmt.Fprintf(b, `<text class="dim" x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n", middle, y.From+16, html.EscapeString(label))
			free = middle + half + 4
		}
	}
	free = y.From + 100
	for _, v := range y.Ticks() {
		at := y.Pixel(v)
		fmt.Fprintf(b, `<path class="grid" d="M%.1f %.1fH%.1f"/>`, x.From, at, x.To)
		if at < free-13 {
			fmt.Fprintf(b, `<text class="dim" x="%.1f" y="%.1f" text-anchor="end">%s</text>`+"\n", x.From-6, at+4, html.EscapeString(y.label(v)))
			free = at
		}
	}
	fmt.Fprintf(b, `<path class="axis" d="M%.1f %.1fH%.1f"/>`+"\n", x.From, y.From, x.To)
	fmt.Fprintf(b, `<text class="dim" x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n", (x.From+x.To)/2, p.Height-8, html.EscapeString(x.Title))
	fmt.Fprintf(b, `<text class="dim" transform="translate(13 %.1f) rotate(-90)" text-anchor="middle">%s</text>`+"\n", (y.From+y.To)/2, html.EscapeString(y.Title))
}

func (l *Line) draw(b *bytes.Buffer, x, y *Axis) {
	var path strings.Builder
	last := 0.0
	for k, pt := range l.Points {
		px, py := x.Pixel(pt.X), y.Pixel(pt.Y)
		if l.Steps && k > 0 {
			fmt.Fprintf(&path, "L%.1f %.1f", px, last)
		}
		fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(k, 1)], px, py)
		last = py
	}
	fmt.Fprintf(b, `<path d="%s" fill="none" stroke-width="1.9" stroke-linejoin="round" %s><title>%s</title></path>`+"\n",
		path.String(), l.Pen.attributes(), html.EscapeString(l.Label))
	if !l.Dots {
		return
	}
	for _, pt := range l.Points {
		if pt.High > pt.Low {
			fmt.Fprintf(b, `<path d="M%.1f %.1fV%.1f" fill="none" stroke-width="1" %s/>`, x.Pixel(pt.X), y.Pixel(pt.Low), y.Pixel(pt.High), l.Pen.attributes())
		}
		fmt.Fprintf(b, `<circle class="fill%d" cx="%.1f" cy="%.1f" r="3"><title>%s: %s, %s</title></circle>`+"\n",
			l.Pen.Colour%len(Colours), x.Pixel(pt.X), y.Pixel(pt.Y), html.EscapeString(l.Label), html.EscapeString(x.label(pt.X)), html.EscapeString(y.label(pt.Y)))
	}
}

// Thin leaves about so many points.
func Thin(points []Point, most int) []Point {
	every := len(points)/most + 1
	var out []Point
	for i, p := range points {
		if i%every == 0 || i == len(points)-1 {
			out = append(out, p)
		}
	}
	return out
}

// Span widens low and high by points' values and spreads.
func Span(low, high float64, points []Point, value func(Point) []float64) (float64, float64) {
	for _, p := range points {
		for _, v := range value(p) {
			if !math.IsNaN(v) && !math.IsInf(v, 0) {
				low, high = min(low, v), max(high, v)
			}
		}
	}
	return low, high
}
