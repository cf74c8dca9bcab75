// SPDX-License-Identifier: Apache-2.0

// Package plot draws figures as SVG: lines over two axes, and rows of bars. Colours are
// classes, so that a page may have others for a dark screen; a file of its own brings
// Style along.
package plot

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Axis maps values to a range of pixels.
type Axis struct {
	Title    string
	Log      bool
	Low      float64
	High     float64
	From, To float64 // pixels
	// At are the values that are labelled; nil: powers of ten, or five to ten round numbers.
	At []float64
	// Label writes a value; nil: as a number.
	Label func(float64) string
}

// Pixel is where a value is; what is beyond an end is at it.
func (a *Axis) Pixel(v float64) float64 {
	part := (v - a.Low) / (a.High - a.Low)
	if a.Log {
		part = math.Log(v/a.Low) / math.Log(a.High/a.Low)
	}
	return a.From + min(max(part, 0), 1)*(a.To-a.From)
}

// Ticks returns the values that are labelled.
func (a *Axis) Ticks() []float64 {
	switch {
	case a.At != nil:
		return a.At
	case a.Log:
		return a.decades()
	}
	step := math.Pow(10, math.Floor(math.Log10((a.High-a.Low)/5)))
	for _, m := range []float64{5, 2} {
		if (a.High-a.Low)/(step*m) >= 5 {
			step *= m
			break
		}
	}
	var out []float64
	for k := math.Ceil(a.Low / step); k*step <= a.High*1.0001; k++ {
		out = append(out, k*step)
	}
	return out
}

// decades returns powers of ten, and 2 and 5 times these if there are few.
func (a *Axis) decades() []float64 {
	var out []float64
	factors := []float64{1}
	if math.Log10(a.High/a.Low) < 2.5 {
		factors = []float64{1, 2, 5}
	}
	for v := math.Pow(10, math.Floor(math.Log10(a.Low)+1e-9)); v <= a.High*1.0001; v *= 10 {
		for _, f := range factors {
			if x := v * f; x >= a.Low*0.9999 && x <= a.High*1.0001 {
				out = append(out, x)
			}
		}
	}
	return out
}

func (a *Axis) label(v float64) string {
	if a.Label != nil {
		return a.Label(v)
	}
	return Number(v)
}

// Number writes a round number, with commas.
func Number(v float64) string {
	v = math.Round(v*1e9) / 1e9 // what floating point adds
	if math.Abs(v) < 1000 || v != math.Trunc(v) {
		return fmt.Sprintf("%g", v)
	}
	digits := fmt.Sprintf("%.0f", v)
	var out strings.Builder
	for i, d := range digits {
		if left := len(digits) - i; i > 0 && left%3 == 0 && digits[i-1] != '-' {
			out.WriteByte(',')
		}
		out.WriteRune(d)
	}
	return out.String()
}

// Short writes thousands with a k.
func Short(v float64) string {
	if v >= 1000 && math.Mod(v, 1000) == 0 {
		return Number(v/1000) + "k"
	}
	return Number(v)
}

// Time writes seconds as people do, with three digits.
func Time(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case math.IsNaN(seconds):
		return "–"
	case d < time.Millisecond:
		return digits(seconds*1e6) + " µs"
	case d < time.Second:
		return digits(seconds*1e3) + " ms"
	case d < 10*time.Minute:
		return digits(seconds) + " s"
	}
	return digits(d.Minutes()) + " min"
}

// digits writes three significant digits, or all before the point.
func digits(v float64) string {
	if v >= 1000 {
		return Number(math.Round(v))
	}
	return fmt.Sprintf("%.3g", v)
}
