// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// screen writes the demo's output, in colour if somebody looks at it.
type screen struct {
	w      io.Writer
	colour bool
	names  map[netip.Addr]string // whose address it is
}

func newScreen(f *os.File) *screen {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return &screen{w: f, colour: err == nil && os.Getenv("NO_COLOR") == ""}
}

const (
	bold  = "1"
	dim   = "2"
	red   = "1;31"
	green = "32"
)

// paint pads text to width and colours it.
func (s *screen) paint(style, text string, width int) string {
	text = fmt.Sprintf("%-*s", width, text)
	if !s.colour || style == "" {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

func (s *screen) line(format string, args ...any) { fmt.Fprintf(s.w, format+"\n", args...) }

// heading starts a part of the story.
func (s *screen) heading(text string) { s.line("\n%s", s.paint(bold, text, 0)) }

// cell is a piece of a line: a column of the table.
type cell struct {
	text, style string
	right       bool
}

// table prints the rows of one Service under its name.
func (s *screen) table(svc *service, rs []*row) {
	s.line("\n%s  %s", s.paint(bold, svc.name, 0), svc.title())
	if len(rs) == 0 {
		return
	}
	pods := slices.Sorted(maps.Keys(columns(svc, rs)))
	lines := [][]cell{headings(pods)}
	last := frontend{}
	for _, r := range rs {
		lines = append(lines, s.cells(r, pods, r.to != last))
		last = r.to
	}
	s.grid(lines, rs)
}

// grid prints lines in columns: the headings, and one for each row with its faults.
func (s *screen) grid(lines [][]cell, rs []*row) {
	widths := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, c := range line {
			widths[i] = max(widths[i], len(c.text))
		}
	}
	for i, line := range lines {
		s.print(line, widths)
		if i == 0 {
			continue
		}
		for _, fault := range rs[i-1].faults {
			s.line("      %s", s.paint(red, "!! "+fault, 0))
		}
	}
}

// columns are the pods that may answer, and those that did.
func columns(svc *service, rs []*row) map[string]bool {
	out := map[string]bool{}
	for _, pod := range svc.podNames() {
		out[pod] = true
	}
	for _, r := range rs {
		for pod := range r.answers {
			out[pod] = true
		}
	}
	return out
}

func headings(pods []string) []cell {
	line := []cell{{"TO", dim, false}, {"", dim, false}, {"FROM", dim, false}}
	for _, pod := range pods {
		line = append(line, cell{pod, dim, true})
	}
	return append(line, cell{"CLIENT SAW", dim, false}, cell{"BACKEND SAW", dim, false}, cell{"", dim, false})
}

func (s *screen) cells(r *row, pods []string, first bool) []cell {
	line := []cell{{}, {}, {r.from.host.Name, "", false}}
	if first {
		line[0] = cell{r.to.typ, "", false}
		line[1] = cell{r.to.addr.String() + "/" + r.to.proto, "", false}
	}
	for _, pod := range pods {
		line = append(line, r.answersOf(pod))
	}
	return append(line, cell{r.seenByClient(), "", false}, cell{s.seenByServer(r), "", false}, r.verdict())
}

func (r *row) answersOf(pod string) cell {
	c := cell{strconv.Itoa(r.answers[pod]), "", true}
	if r.answers[pod] == 0 {
		c = cell{"-", dim, true}
	}
	if _, ok := r.want.servers[pod]; !ok && r.answers[pod] > 0 {
		c.style = red
	}
	return c
}

func (r *row) verdict() cell {
	if len(r.faults) > 0 {
		return cell{"!!", red, false}
	}
	return cell{"ok", green, false}
}

// seenByClient is the peer, or what became of the call.
func (r *row) seenByClient() string {
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(r.other)) {
		if kind == lab.Timeout {
			parts = append(parts, "silence")
		} else {
			parts = append(parts, string(kind))
		}
	}
	switch peer := mostPeer(r.peers); {
	case len(r.peers) == 0:
	case peer == r.to.addr && len(r.peers) == 1:
		parts = append(parts, "what it dialled")
	default:
		parts = append(parts, peer.String())
	}
	return strings.Join(parts, ", ")
}

func mostPeer(peers map[netip.AddrPort]int) netip.AddrPort {
	byText := map[string]int{}
	for p, n := range peers {
		byText[p.String()] = n
	}
	p, _ := netip.ParseAddrPort(most(byText)) // invalid when empty
	return p
}

// seenByServer is whose address the backends saw, and the address.
func (s *screen) seenByServer(r *row) string {
	var parts []string
	for _, a := range slices.SortedFunc(maps.Keys(r.sources), netip.Addr.Compare) {
		parts = append(parts, strings.TrimSpace(s.names[a]+" "+a.String()))
	}
	return strings.Join(parts, ", ")
}

func (s *screen) print(line []cell, widths []int) {
	var b strings.Builder
	for i, c := range line {
		text := c.text
		if c.right {
			text = fmt.Sprintf("%*s", widths[i], text)
		}
		b.WriteString("  " + s.paint(c.style, text, widths[i]))
	}
	s.line("%s", strings.TrimRight(b.String(), " "))
}
