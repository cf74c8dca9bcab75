// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/observe"
)

// report is everything of one run.
type report struct {
	Machine  observe.Machine `json:"machine"`
	Quick    bool            `json:"quick,omitempty"`
	Nodes    int             `json:"nodes"`
	Rate     int             `json:"rate"`  // new connections a second of each node
	Dense    int             `json:"dense"` // of the one that has many more
	Outcomes []*outcome      `json:"outcomes,omitempty"`
	Alone    []*alone        `json:"alone,omitempty"`
	Probed   *probed         `json:"probed,omitempty"`
}

// What a node may notice of a fault.
const (
	mostRefused  = 3                       // connections of a node that fail when a process is killed
	lastRefused  = 5 * time.Millisecond    // after the node's first
	lastSilent   = 1300 * time.Millisecond // after a backend went silent
	goalKilled   = "<= 3 a node, none 5 ms after its first"
	goalDense    = "<= 3 a node, none after 5 ms"
	goalSilent   = "none after 1.3 s"
	goalProbes   = "0 ejected"
	goalCPU      = "<= 0.5"
	methodHeader = `
Each node makes new connections at fixed times, half of them by sockets that the socket hooks
see, half by packets; each is answered and closed. One counts as failed if it failed or took more than 1 s. "Last"
is when the last of them began, after the fault was complete; "after first" is when it began
after its node's first had failed. Until then a node that does not happen to probe cannot know.
"Lost" are not among them: they were established when the process was killed, or until its end,
and reset by its kernel; no balancer can help them.
The kubelet's rows have health off; the endpoint is made unready when the third readiness probe
has failed, the first one half a period after the fault, and a second for the way of that news.
`
)

// line is one of the table: all rounds of one fault in one arm.
type line struct {
	arm, fault string
	dense      bool   // of the nodes with many connections, or of the others
	each       []node // in all rounds
	total      int
	lost       int
	worst      node
	before     int
}

func (r *report) lines() (lines []*line) {
	for _, o := range r.Outcomes {
		for _, dense := range []bool{false, true} {
			i := slices.IndexFunc(lines, func(l *line) bool { return l.arm == o.Arm && l.fault == o.Fault && l.dense == dense })
			if i < 0 {
				i = len(lines)
				lines = append(lines, &line{arm: o.Arm, fault: o.Fault, dense: dense})
			}
			lines[i].add(o)
		}
	}
	return lines
}

func (l *line) add(o *outcome) {
	for i, n := range o.Nodes {
		if (i == o.Dense) == l.dense {
			l.each = append(l.each, n)
			l.total += n.Failed
			l.lost += n.Lost
			l.worst = l.worst.worse(n)
		}
	}
	l.before += o.Before
}

// median is of how many connections failed.
func (l *line) median() int {
	slices.SortFunc(l.each, func(a, b node) int { return a.Failed - b.Failed })
	return l.each[len(l.each)/2].Failed
}

// judge returns the goal of a line, and whether it is met.
func (l *line) judge() (goal, met string) {
	switch {
	case slices.ContainsFunc(arms, func(a arm) bool { return a.name == l.arm && a.blind }):
		return "", ""
	case l.fault == "killed" && l.dense:
		return goalDense, yes(l.worst.Failed <= mostRefused && l.worst.Last <= lastRefused)
	case l.fault == "killed":
		return goalKilled, yes(l.worst.Failed <= mostRefused && l.worst.Known <= lastRefused)
	}
	return goalSilent, yes(l.worst.Last <= lastSilent)
}

func yes(ok bool) string {
	if ok {
		return "yes"
	}
	return "no"
}

func (r *report) print(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "\n%s\nLinux %s, %d x %s, %s\nload average before: %s, after: %s\n%d nodes, %d new connections a second each, one of them %d, 8 backends\n%s\n",
		m.Time.Format("2006-01-02 15:04 UTC"), m.Kernel, m.CPUs, m.CPU, m.Go, m.LoadBefore, m.LoadAfter, r.Nodes, r.Rate, r.Dense, methodHeader)
	if r.Quick {
		fmt.Fprint(w, "-quick: this only shows that everything runs; the numbers say nothing.\n\n")
	}
	if err := r.table(w); err != nil {
		return err
	}
	for _, a := range r.Alone {
		fmt.Fprintf(w, "\nall agents killed %s after the fault: in %s without them %d connections failed, at most %d of a node.\n"+
			"The backend came back: %d of %d connections in %s went to it; %s after the start of the agents all clients had it.\n",
			a.Killed, a.For, a.Then, a.Worst, a.Back, a.Others, a.For, millis(a.Found))
	}
	if p := r.Probed; p != nil {
		fmt.Fprintf(w, "\n%d endpoints probed once a second: %.0f probes a second, %.2f processors of the agent, %.2f for all of them, goal %s: %s\n",
			p.Targets, p.Rate, p.CPU, p.all(), goalCPU, yes(p.all() <= p.Limit))
		fmt.Fprintf(w, "%.2f of the agent's are the kernel's, which sends packets to the backends and back within the agent's calls.\n"+
			"A program that only makes %d connections a second, a socket each, and resets them: %.2f processors.\n", p.Kernel, p.Targets, p.Null)
		fmt.Fprintf(w, "%d processes burn all processors: %.0f probes by TCP and %.0f by HTTP in %s, %.0f failed, %.0f could not be made, %.0f backends ejected, goal %s: %s; %d packets dropped\n",
			p.Burners, p.TCP, p.HTTP, p.Took.Round(time.Second), p.Failed, p.Cannot, p.Ejected, goalProbes, yes(p.Ejected == 0), p.Dropped)
	}
	return nil
}

// table prints what clients noticed of faults.
func (r *report) table(w io.Writer) error {
	if len(r.Outcomes) == 0 {
		return nil
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "a backend is\twith\tconnections/s\tnodes x rounds\tfailed\tof a node: median\tmost\tlast\tafter first\tlost\tbefore\tgoal\tmet\t")
	for _, l := range r.lines() {
		goal, met := l.judge()
		rate := r.Rate
		if l.dense {
			rate = r.Dense
		}
		fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%d\t%d\t%s\t%s\t\n", l.fault, l.arm, rate, len(l.each), l.total,
			l.median(), l.worst.Failed, millis(l.worst.Last), millis(l.worst.Known), l.lost, l.before, goal, met)
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
