// SPDX-License-Identifier: Apache-2.0

package plot

import (
	"bytes"
	"fmt"
	"html"
)

// Strip is a row of bars: the shares of backends under one arm.
type Strip struct {
	Label  string
	Values []float64 // 1 is fair
	Groups []int     // of the values; those of a group are neighbours
	Note   string    // at the end, if there is room
	Short  string    // at the end, if there is little
}

// Strips are rows of bars on one scale, with a line at the fair share.
type Strips struct {
	Title string
	Width float64
	Rows  []Strip
	// Colours are those of the groups.
	Colours []int
}

const (
	stripHeight = 34
	stripStep   = 62
	groupGap    = 6
	narrow      = 450 // has little room for notes
	highest     = 3   // times the fair share: what is more is cut
)

// SVG draws the rows.
func (s *Strips) SVG() string {
	height := 8 + stripStep*float64(len(s.Rows))
	most := 1.5
	for _, r := range s.Rows {
		for _, v := range r.Values {
			most = max(most, min(v, highest))
		}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" width="%g" height="%g" font-family="system-ui, sans-serif" font-size="%d" role="img" aria-label="%s">`+"\n",
		s.Width, height, s.Width, height, fontSize, html.EscapeString(s.Title))
	for i, r := range s.Rows {
		r.draw(&b, s, 8+stripStep*float64(i), most)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// Box is a piece of a bar, for a legend.
func Box(colour int) string {
	return fmt.Sprintf(`<svg class="swatch" width="12" height="12" aria-hidden="true"><rect class="fill%d" width="12" height="12"/></svg>`, colour%len(Colours))
}

func (r *Strip) draw(b *bytes.Buffer, s *Strips, top, most float64) {
	width := s.Width
	note := r.Note
	if width < narrow {
		note = r.Short
	}
	base := top + 16 + stripHeight
	fmt.Fprintf(b, `<text class="ink" x="0" y="%.1f">%s</text><text class="dim" x="%.1f" y="%.1f" text-anchor="end">%s</text>`+"\n",
		top+8, html.EscapeString(r.Label), width, top+8, html.EscapeString(note))
	gaps := 0.0
	for i := 1; i < len(r.Groups); i++ {
		if r.Groups[i] != r.Groups[i-1] {
			gaps++
		}
	}
	step := (width - groupGap*gaps) / float64(max(1, len(r.Values)))
	x := 0.0
	for i, v := range r.Values {
		if i > 0 && r.Groups[i] != r.Groups[i-1] {
			x += groupGap
		}
		h := stripHeight * min(v, most) / most
		fmt.Fprintf(b, `<rect class="fill%d" x="%.2f" y="%.1f" width="%.2f" height="%.1f"><title>%s: %.2f times its fair share</title></rect>`,
			s.Colours[r.Groups[i]]%len(Colours), x, base-h, max(0.3, step*0.85), h, html.EscapeString(r.Label), v)
		x += step
	}
	fair := base - stripHeight/most
	fmt.Fprintf(b, `<path class="axis" d="M0 %.1fH%.1f"/><path class="mark" stroke-dasharray="4 3" d="M0 %.1fH%.1f"/>`+"\n", base, width, fair, width)
}
