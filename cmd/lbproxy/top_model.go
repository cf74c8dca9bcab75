// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// topKeys tells what keys do.
const topKeys = `Keys: up, down, page up, page down: select; right, left, enter: show or hide the backends
of a Service; a: of all; s: sort by the next of rate, live, failed, latency and name; q: end.
`

// sorting is what Services are sorted by.
type sorting int

// The sortings, in the order in which s goes through them.
const (
	byRate sorting = iota
	byLive
	byFailed
	byLatency
	byName
	sortings
)

// String returns its name.
func (s sorting) String() string {
	return [...]string{"rate", "live", "failed", "latency", "name"}[s]
}

// topModel is what is shown, and what was chosen by keys.
type topModel struct {
	live     live
	sorted   sorting
	every    bool            // all Services show their backends
	open     map[string]bool // or these, unless every: these do not
	selected string          // the name of a Service
	top      int             // the first row that is seen
	page     int             // how many rows are seen
}

// topRow is a line of the table.
type topRow struct {
	service string // whose line it is, or whose backend's
	text    string
	alarm   bool // something is out or failed
}

// key does what a key asks for. It returns true if that is to end.
func (m *topModel) key(k string) (quit bool) {
	names := m.order()
	at := slices.Index(names, m.selected)
	move := func(by int) {
		if len(names) > 0 {
			m.selected = names[min(max(0, at+by), len(names)-1)]
		}
	}
	switch k {
	case "q", "Q", "\x03", "\x04":
		return true
	case "s":
		m.sorted = (m.sorted + 1) % sortings
	case "a":
		m.every, m.open = !m.every, nil
	case keyUp, "k":
		move(-1)
	case keyDown, "j":
		move(1)
	case keyPageUp:
		move(-max(1, m.page-1))
	case keyPageDown, " ":
		move(max(1, m.page-1))
	case keyRight:
		m.show(true)
	case keyLeft:
		m.show(false)
	case "\r", "\n":
		m.show(!m.shows(m.selected))
	}
	return false
}

// shows tells whether the backends of a Service are shown.
func (m *topModel) shows(name string) bool { return m.open[name] != m.every }

// show shows the backends of the selected Service, or hides them.
func (m *topModel) show(yes bool) {
	if m.open == nil {
		m.open = map[string]bool{}
	}
	if m.shows(m.selected) != yes {
		m.open[m.selected] = !m.open[m.selected]
	}
}

// order returns the names of Services as they are sorted.
func (m *topModel) order() []string {
	slices.SortFunc(m.live.Services, func(a, b liveService) int {
		c := 0
		switch m.sorted {
		case byRate:
			c = cmp.Or(compareRates(b.Rate, a.Rate), cmp.Compare(b.Live, a.Live))
		case byLive:
			c = cmp.Compare(b.Live, a.Live)
		case byFailed:
			c = cmp.Compare(b.Failed, a.Failed)
		case byLatency:
			c = cmp.Compare(b.LatencyMicros, a.LatencyMicros)
		case byName, sortings:
		}
		return cmp.Or(c, strings.Compare(a.Name, b.Name))
	})
	names := make([]string, len(m.live.Services))
	for i, s := range m.live.Services {
		names[i] = s.Name
	}
	return names
}

func compareRates(a, b *float64) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return -1
	case b == nil:
		return 1
	}
	return cmp.Compare(*a, *b)
}

var topHeader = []string{"SERVICE / BACKEND", "ALGORITHM", "RATE/s", "LIVE", "FAILED", "EXPECTED", "SHARE", "LATENCY", "HEALTH"}

// table returns the header and a row for each Service and each backend that is shown, in
// columns.
func (m *topModel) table() []topRow {
	m.order()
	cells := [][]string{topHeader}
	rows := []topRow{{}}
	for _, s := range m.live.Services {
		health := "-"
		if n := len(s.Backends); n > 0 {
			health = fmt.Sprintf("%d of %d in", n-s.Out, n)
		}
		cells = append(cells, []string{s.Name, algorithmCell(s), rate(s.Rate), number(s.Live), number(s.Failed), "", "", latencyCell(s.LatencyMicros), health})
		rows = append(rows, topRow{service: s.Name, alarm: s.Out > 0 || len(s.Backends) == 0})
		if !m.shows(s.Name) {
			continue
		}
		for _, b := range s.Backends {
			cells = append(cells, []string{"  " + b.Address, b.State, rate(b.Rate), number(b.Live), number(b.Failed),
				percent(b.Expected), b.share(), latencyCell(b.LatencyMicros), oneCell(opinion(b.Health))})
			rows = append(rows, topRow{service: s.Name, alarm: b.Health != nil && b.Health.State == stateOut || b.Suspect})
		}
	}
	for i, text := range columns(cells) {
		rows[i].text = text
	}
	return rows
}

func algorithmCell(s liveService) string {
	if s.Approximation != "" {
		return "~" + s.Algorithm
	}
	return s.Algorithm
}

// share is the measured share: of the last minute, or of all of its time where nothing counts.
func (b *liveBackend) share() string {
	if b.Recent != nil {
		return percent(*b.Recent)
	}
	return percent(b.Share)
}

func rate(r *float64) string {
	if r == nil {
		return "-"
	}
	return strconv.FormatFloat(*r, 'f', 1, 64)
}

func latencyCell(micros uint32) string { return latency(time.Duration(micros) * time.Microsecond) }

// columns aligns cells: the first column and words to the left, numbers to the right.
func columns(cells [][]string) []string {
	widths := make([]int, len(cells[0]))
	for _, row := range cells {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	last := len(widths) - 1
	out := make([]string, len(cells))
	for r, row := range cells {
		var b strings.Builder
		for i, c := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c))
			switch {
			case i == last:
				b.WriteString(c)
			case i < 2:
				b.WriteString(c + pad + "  ")
			default:
				b.WriteString(pad + c + "  ")
			}
		}
		out[r] = b.String()
	}
	return out
}

// screen returns the lines of a screen of that size, which the terminal shows from its top.
func (m *topModel) screen(width, height int) []topRow {
	rows := m.table()
	head := []topRow{
		{text: fmt.Sprintf("lbproxy top  %s  %d Services  %s connections/s  %d open", m.live.At.Format(time.TimeOnly), len(m.live.Services), rate(m.live.Rate), m.live.Live)},
		{text: fmt.Sprintf("sorted by %s   s: sort  arrows: select, backends  a: all backends  q: end", m.sorted)},
	}
	for _, note := range m.live.Notes {
		head = append(head, topRow{text: oneCell(note), alarm: true})
	}
	head = append(head, rows[0])
	rows = rows[1:]
	m.page = max(1, height-len(head))
	first := slices.IndexFunc(rows, func(r topRow) bool { return r.service == m.selected })
	if first < 0 && len(rows) > 0 { // what was selected is gone
		first, m.selected = 0, rows[0].service
	}
	m.top = max(0, min(m.top, first, len(rows)-m.page))
	if first >= m.top+m.page {
		m.top = first - m.page + 1
	}
	seen := append(head, rows[m.top:min(len(rows), m.top+m.page)]...)
	seen = seen[:min(len(seen), height)]
	for i := range seen {
		seen[i].text = cut(seen[i].text, width)
	}
	return seen
}

// cut returns at most n characters of text.
func cut(text string, n int) string {
	if utf8.RuneCountInString(text) <= n {
		return text
	}
	return string([]rune(text)[:max(0, n)])
}
