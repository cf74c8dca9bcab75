// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/lbproxy/lbproxy/bench/internal/observe"
)

// result is everything about one arm at one scale.
type result struct {
	Arm       string           `json:"arm"`
	Services  int              `json:"services"`
	Endpoints int              `json:"endpoints"` // of each
	Values    map[string]value `json:"values"`
	Changes   []float64        `json:"changes"` // ms, each one made alone
	scale     scale
}

// report is everything of one run.
type report struct {
	Machine observe.Machine `json:"machine"`
	Tools   []string        `json:"tools"` // versions of what kube-proxy runs
	Quick   bool            `json:"quick,omitempty"`
	Results []result        `json:"results"`
	Beside  []*series       `json:"beside,omitempty"`
	Failed  []string        `json:"failed,omitempty"` // what could not be measured

	compared scale // of Beside
}

func (r *report) add(s *site) {
	w := s.place.world.scale
	r.Results = append(r.Results, result{s.name, w.services, w.endpoints, s.results, s.lone, w})
}

func (r *report) find(arm string, s scale) map[string]value {
	for _, res := range r.Results {
		if res.Arm == arm && res.scale == s {
			return res.Values
		}
	}
	return nil
}

// target is what lbproxy should achieve at most.
type target struct {
	row  string
	at   func(scale) bool
	most float64
	text string
}

func many(s scale) bool { return s.services >= 1000 }

var targets = []target{
	{rowCold, many, 1, "<= 1 s"},
	{rowP50, many, 0.3, "<= 0.3 ms"},
	{rowP99, many, 3, "<= 3 ms"},
	{rowP50, func(s scale) bool { return !many(s) }, 1, "<= 1 ms"},
	{fmt.Sprintf(rowStormP99, 1000), many, 50, "<= 50 ms"},
	{fmt.Sprintf(rowStormCPU, 1000), many, 25, "<= 25 %"},
	{rowRSS, func(s scale) bool { return s.services == 10_000 }, 120, "<= 120 MB"},
	{rowWrites, func(s scale) bool { return s.endpoints > 1 }, 0, "0"},
	{rowStaleMax, func(s scale) bool { return s.endpoints == 1 }, 100, "<= 100 ms"},
}

// judge returns the target of a row and whether v meets it.
func judge(row string, s scale, v value, have bool) (text, met string) {
	for _, t := range targets {
		if t.row != row || !t.at(s) {
			continue
		}
		switch {
		case !have:
			return t.text, "?"
		case v.Of <= t.most:
			return t.text, "yes"
		}
		return t.text, "no"
	}
	return "", ""
}

var rows = []string{
	rowStart, rowCold, rowPeak, rowP50, rowP99, rowMax,
	fmt.Sprintf(rowStormP50, 1000), fmt.Sprintf(rowStormP99, 1000), fmt.Sprintf(rowStormCPU, 1000),
	rowRSS, rowAnon, rowRestart, rowWrites,
	rowStaleP50, rowStaleP99, rowStaleMax,
}

const method = `
Changes put a new pod in the place of another. They count from the moment when the fake API
server begins to write the watch event; it speaks protobuf over HTTP without TLS. They arrive:
lbproxy's when the 8-byte store that commits a Service is seen in the mapped table; kube-proxy's
when the kernel tells listeners of the transaction of nf_tables (iptables' too) that has the
new pod's address. "Last object sent" is when the API server had written the last list: what the
client has not yet read and parsed then counts as programming. One change: the next follows when
it has arrived, after 15 ms, or 1.1 s for a minSyncPeriod of 1 s. Processor time is that of the
program and all that it started. Memory is looked at after the changes, before the storm.
UDP sockets: a process in each of several pods, in a network namespace of its own, connects to a
Service of one endpoint and waits. Another pod takes that one's place; the time ends when the
process has the error from its read, and each process counts.
`

func (r *report) print(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "\n%s\nLinux %s, %d x %s, %s\nload average before: %s, after: %s\n%s",
		m.Time.Format("2006-01-02 15:04 UTC"), m.Kernel, m.CPUs, m.CPU, m.Go, m.LoadBefore, m.LoadAfter, method)
	fmt.Fprintf(w, "kube-proxy is v1.37.2, with %s.\n", strings.Join(r.Tools, " and "))
	if r.Quick {
		fmt.Fprint(w, "\n-quick: this only shows that everything runs; the numbers say nothing.\n")
	}
	var arms []string
	var scales []scale
	have := map[any]bool{}
	for _, res := range r.Results {
		if !have[res.Arm] && res.Arm != floorName {
			have[res.Arm] = true
			arms = append(arms, res.Arm)
		}
		if !have[res.scale] {
			have[res.scale] = true
			scales = append(scales, res.scale)
		}
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range scales {
		r.table(tw, s, arms)
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	r.compare(w)
	if err := r.printBeside(w, r.compared); err != nil {
		return err
	}
	for _, f := range r.Failed {
		fmt.Fprintln(w, "not measured:", f)
	}
	return nil
}

// table prints everything at one scale.
func (r *report) table(w io.Writer, s scale, arms []string) {
	fmt.Fprintf(w, "\n%s\ttarget\tmet", s)
	for _, a := range arms {
		if !strings.HasPrefix(a, "lbproxy") {
			a = "kube-proxy " + a
		}
		fmt.Fprintf(w, "\t%s", a)
	}
	fmt.Fprintln(w, "\t")
	for _, row := range rows {
		own, have := r.find("lbproxy", s)[row]
		text, met := judge(row, s, own, have)
		line, some := fmt.Sprintf("%s\t%s\t%s", row, text, met), false
		for _, a := range arms {
			v, ok := r.find(a, s)[row]
			some = some || ok
			line += "\t" + v.String(ok)
		}
		if some {
			fmt.Fprintln(w, line+"\t")
		}
	}
}

// compare prints the targets that concern more than one column or scale.
func (r *report) compare(w io.Writer) {
	fmt.Fprintln(w)
	for _, res := range r.Results {
		if res.Arm == floorName {
			fmt.Fprintf(w, "floor, a Go program that reads the event and does nothing, in the same moments: p50 %s, p99 %s, longest %s\n",
				res.Values[rowP50].String(true), res.Values[rowP99].String(true), res.Values[rowMax].String(true))
		}
	}
	small, okSmall := r.find("lbproxy", scale{1000, 10})[rowP50]
	big, okBig := r.find("lbproxy", scale{44_000, 10})[rowP50]
	if okSmall && okBig {
		verdict(w, "one change p50 at 44,000 Services against 1,000", big.Of/small.Of, 1.1)
	}
	for _, other := range []string{"nftables 1s", "nftables 0s"} {
		own, ok := r.find("lbproxy", scale{10_000, 10})[rowRSS]
		its, okIts := r.find(other, scale{10_000, 10})[rowRSS]
		if ok && okIts {
			verdict(w, "memory at 10,000 Services against kube-proxy "+other, own.Of/its.Of, 0.5)
		}
	}
}

func verdict(w io.Writer, what string, ratio, most float64) {
	met := "yes"
	if ratio > most {
		met = "no"
	}
	fmt.Fprintf(w, "%s: %.2f, target <= %.2f: %s\n", what, ratio, most, met)
}

// String prints three significant digits, more before the point if there are more.
func (v value) String(ok bool) string {
	if !ok {
		return "-"
	}
	decimals := 3
	for x := v.Of; x >= 1 && decimals > 0; x /= 10 {
		decimals--
	}
	text := strconv.FormatFloat(v.Of, 'f', decimals, 64)
	if v.Of == 0 {
		text = "0"
	}
	if v.More {
		text = "> " + text
	}
	if v.Unit != "" {
		text += " " + v.Unit
	}
	if v.N > 0 {
		text += fmt.Sprintf(" (%d)", v.N)
	}
	return text
}

// tools asks the programs that kube-proxy runs for their versions.
func tools(ctx context.Context) ([]string, error) {
	var versions []string
	for _, name := range []string{"iptables", "nft"} {
		out, err := exec.CommandContext(ctx, name, "--version").Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		versions = append(versions, strings.TrimSpace(string(out)))
	}
	return versions, nil
}

// save writes every number.
func (r *report) save(path string) error {
	return observe.Save(path, r)
}
