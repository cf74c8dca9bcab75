// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html"
	"math"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/plot"
	"github.com/lbproxy/lbproxy/bench/internal/sim"
)

// bar is what a picture of bars shows of one algorithm.
type bar struct {
	Algorithm string  `json:"algorithm"`
	P99       float64 `json:"p99"` // ms
}

// barChart is what a picture of bars is drawn from: one case of a scenario.
type barChart struct {
	Title string  `json:"title"`
	About string  `json:"about"`
	Load  float64 `json:"load"`
	Bars  []bar   `json:"bars"`
}

// chartOf takes the first case of a report.
func chartOf(rep *sim.Report) barChart {
	first := rep.Results[0]
	c := barChart{Title: rep.Scenario.About, Load: first.Load}
	c.About = fmt.Sprintf("99th percentile of the response time at load %g, simulated: %d requests for each algorithm", first.Load, rep.Scenario.Requests)
	for _, r := range rep.Results {
		if r.Load == first.Load && r.Nodes == first.Nodes {
			c.Bars = append(c.Bars, bar{r.Algorithm, 1000 * r.P99})
		}
	}
	return c
}

// text returns the chart as it is kept beside the picture.
func (c barChart) text() ([]byte, error) {
	text, err := json.MarshalIndent(c, "", "  ")
	return append(text, '\n'), err
}

const (
	barsWidth, barsLeft, barsTop = 760, 150, 64
	barHeight, barStep           = 22, 34
)

// draw returns the picture: a bar for each algorithm, on a scale by powers of ten. It reads
// well on a light page and on a dark one.
func (c barChart) draw() []byte {
	low, high := math.Inf(1), 0.0
	for _, b := range c.Bars {
		low, high = min(low, b.P99), max(high, b.P99)
	}
	x := plot.Axis{Log: true, Low: math.Pow(10, math.Floor(math.Log10(low))), High: math.Pow(10, math.Ceil(math.Log10(high))), From: barsLeft, To: barsWidth - 110}
	height := barsTop + barStep*len(c.Bars) + 34
	bottom := height - 30
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="13" role="img">`+"\n", barsWidth, height, barsWidth, height)
	fmt.Fprintf(&b, "<title>%s</title>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n", html.EscapeString(c.Title))
	fmt.Fprintf(&b, `<text x="16" y="24" font-size="15" font-weight="bold">%s</text><text x="16" y="44" fill="#555">%s</text>`+"\n", html.EscapeString(c.Title), html.EscapeString(c.About))
	for _, v := range x.Ticks() {
		p := x.Pixel(v)
		fmt.Fprintf(&b, `<path d="M%.1f %dV%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle" fill="#555">%s</text>`+"\n", p, barsTop-6, bottom, p, bottom+16, milliseconds(v))
	}
	for i, a := range c.Bars {
		y := barsTop + i*barStep
		colour := plot.Colours[0]
		if len(a.Algorithm) > 7 && a.Algorithm[:7] == "oracle-" {
			colour = plot.Colours[plot.Plain]
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d">%s</text>`+"\n",
			barsLeft-8, y+16, html.EscapeString(a.Algorithm), barsLeft, y, x.Pixel(a.P99)-barsLeft, barHeight, colour, x.Pixel(a.P99)+6, y+16, milliseconds(a.P99))
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// milliseconds writes a time as people do, with two digits.
func milliseconds(ms float64) string {
	d := time.Duration(ms * float64(time.Millisecond))
	switch {
	case d < time.Second:
		return fmt.Sprintf("%.3g ms", math.Round(ms*10)/10)
	case d < 10*time.Minute:
		return fmt.Sprintf("%.3g s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%.2g min", d.Minutes())
	}
	return fmt.Sprintf("%.2g h", d.Hours())
}
