// SPDX-License-Identifier: Apache-2.0

package plot

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
)

func TestTicks(t *testing.T) {
	for _, tc := range []struct {
		name string
		axis Axis
		want []float64
	}{
		{"linear", Axis{Low: 0, High: 10}, []float64{0, 2, 4, 6, 8, 10}},
		{"linear, small", Axis{Low: 0, High: 0.7}, []float64{0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7}},
		{"powers of ten", Axis{Log: true, Low: 1, High: 10_000}, []float64{1, 10, 100, 1000, 10_000}},
		{"less than three", Axis{Log: true, Low: 3, High: 60}, []float64{5, 10, 20, 50}},
		{"given", Axis{Log: true, Low: 1, High: 9, At: []float64{3}}, []float64{3}},
	} {
		got := tc.axis.Ticks()
		if !slices.EqualFunc(got, tc.want, func(a, b float64) bool { return math.Abs(a-b) < 1e-9 }) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestPixel(t *testing.T) {
	a := Axis{Log: true, Low: 1, High: 100, From: 50, To: 250}
	for v, want := range map[float64]float64{1: 50, 10: 150, 100: 250, 1000: 250, 0.1: 50} {
		if got := a.Pixel(v); math.Abs(got-want) > 1e-9 {
			t.Errorf("%v is at %v, want %v", v, got, want)
		}
	}
}

func TestWords(t *testing.T) {
	for _, tc := range []struct{ got, want string }{
		{Number(1234567), "1,234,567"}, {Number(-12000), "-12,000"}, {Number(999), "999"}, {Number(0.1 + 0.2), "0.3"},
		{Short(30_000), "30k"}, {Short(1500), "1,500"}, {Short(7), "7"},
		{Time(0.0000012), "1.2 µs"}, {Time(0.0421), "42.1 ms"}, {Time(3.5), "3.5 s"}, {Time(1800), "30 min"}, {Time(math.NaN()), "–"},
	} {
		if tc.got != tc.want {
			t.Errorf("%q, want %q", tc.got, tc.want)
		}
	}
}

// TestSVG: what is drawn is well-formed, whatever names are in it.
func TestSVG(t *testing.T) {
	const name = `a <b> & "c"`
	p := Plot{
		Title: name, Width: 300, Height: 200, X: Axis{Title: name, High: 3}, Y: Axis{Title: name, Log: true, Low: 1, High: 9}, Alone: true,
		Lines: []Line{{Label: name, Dots: true, Points: []Point{{0, 1, 0, 0}, {1, 5, 4, 6}}}, {Label: name, Steps: true, Pen: PenOf(9), Points: []Point{{0, 1, 0, 0}, {1, 5, 0, 0}}}},
		Marks: []Mark{{1, name}},
	}
	s := Strips{Title: name, Width: 300, Colours: []int{0, Plain}, Rows: []Strip{{Label: name, Note: name, Short: name, Values: []float64{1, 2, 9}, Groups: []int{0, 0, 1}}}}
	for _, text := range []string{p.SVG(), s.SVG(), PenOf(20).Swatch(), Box(3)} {
		d := xml.NewDecoder(strings.NewReader(text))
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%v in\n%s", err, text)
			}
		}
	}
}
