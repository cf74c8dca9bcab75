// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

const besideMethod = `
Beside each other, in turns: each arm in a lab and with an API server of its own, every tenth
Service of UDP, at %s. One pod has all endpoints' addresses. The same thread
sends a first packet and receives it: of a TCP connection, the time of connect(2); of UDP, from
the call that sends to the return of the call that receives. Services and endpoints are random.
"no proxy" dials endpoints in a lab without rules, so without connection tracking, "no proxy,
tracked" with it; what an arm takes more than the former is what it adds. Added times are compared by block: (a - none) / (b - none).
The legacy backend tells nobody of changes: they count when the program that made them ends.
kube-proxy's first iptables-nft-restore had a line -S put before what kube-proxy gave it: without
it, its time grows with the square of the number of chains (10,000 Services: more than 150 s).
Of several numbers: the median, (of how many), and that of the lowest and of the highest block.
`

// pairs are arms that are compared, lbproxy's first.
var pairs = [][2]string{
	{"lbproxy iptables-nft", "iptables-nft 0s"},
	{"lbproxy iptables-nft", "iptables-nft 1s"},
	{"lbproxy iptables-legacy", "iptables-legacy 0s"},
	{"lbproxy iptables-legacy", "iptables-legacy 1s"},
}

// claims are what is wanted of each pair: how much of the other's time at most.
var claims = []struct {
	row   string
	most  float64
	added bool // over no proxy
}{
	{rowCold, 1, false},
	{rowP50, 0.2, false},
	{rowTCP, 0.2, true},
	{rowUDP, 0.2, true},
	{rowOutside, 0.2, true},
	{rowDirect, 0.2, true},
}

func (r *report) series(arm, row string) *series {
	for _, s := range r.Beside {
		if s.Arm == arm && s.Row == row {
			return s
		}
	}
	return nil
}

// printBeside prints what was measured in turns, a line for each arm, and what is wanted.
func (r *report) printBeside(w io.Writer, at scale) error {
	if len(r.Beside) == 0 {
		return nil
	}
	fmt.Fprintf(w, besideMethod, at)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	var rows, arms []string
	for _, s := range r.Beside {
		if !slices.Contains(rows, s.Row) {
			rows = append(rows, s.Row)
		}
		if !slices.Contains(arms, s.Arm) {
			arms = append(arms, s.Arm)
		}
	}
	for _, row := range rows {
		fmt.Fprintf(tw, "\n%s\tp50\tp99\tlowest and highest block\t\n", row)
		for _, arm := range arms {
			if s := r.series(arm, row); s != nil && s.N > 0 {
				fmt.Fprintln(tw, s.line())
			}
		}
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	fmt.Fprintln(w)
	for _, line := range r.compareBeside() {
		fmt.Fprintln(w, line)
	}
	return nil
}

// line is one of the table.
func (s *series) line() string {
	name := s.Arm
	if !strings.HasPrefix(name, "lbproxy") && name != bareName && name != trackedName {
		name = "kube-proxy " + name
	}
	number := func(x float64) string { return value{Of: x}.String(true) }
	blocks := spreadOf(s.Blocks)
	return fmt.Sprintf("  %s\t%s %s (%d)\t%s\t%s .. %s\t", name, number(s.P50), s.Unit, s.N,
		number(s.P99), number(blocks.low), number(blocks.high))
}

// compareBeside has a line for each target, those that are missed first.
func (r *report) compareBeside() []string {
	var missed, met []string
	for _, claim := range claims {
		for _, pair := range pairs {
			a, b := r.series(pair[0], claim.row), r.series(pair[1], claim.row)
			var base *series
			what := claim.row
			if claim.added {
				base = r.series(bareName, claim.row)
				what += ", added"
			}
			if a == nil || b == nil || a.N == 0 || b.N == 0 || claim.added && base == nil {
				continue
			}
			ratio := spreadOf(ratios(a, b, base))
			line := fmt.Sprintf("%s, %s / kube-proxy %s: %.3f (%.3f .. %.3f), target <= %.2f: ",
				what, pair[0], pair[1], ratio.mid, ratio.low, ratio.high, claim.most)
			if ratio.mid <= claim.most {
				met = append(met, line+"yes")
			} else {
				missed = append(missed, line+"no")
			}
		}
	}
	return append(missed, met...)
}
