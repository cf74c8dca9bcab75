// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// outcome is what clients noticed of one fault.
type outcome struct {
	Arm      string        `json:"arm"`
	Fault    string        `json:"fault"`
	Victim   string        `json:"victim"`
	Struck   time.Time     `json:"struck"`
	Complete time.Time     `json:"complete"`
	Removed  time.Duration `json:"removed,omitempty"` // after it was complete, by the kubelet
	Healed   time.Duration `json:"healed"`            // until all clients had it again
	Made     int           `json:"made"`              // connections
	Before   int           `json:"before"`            // of them that failed before the fault
	Late     time.Duration `json:"late"`              // the latest to begin
	Nodes    []node        `json:"nodes"`
	Dense    int           `json:"dense"` // the node with many more connections
	Failed   []sample      `json:"failed"`
}

// node is what clients of one node noticed.
type node struct {
	Failed int `json:"failed"`

	// Lost were established, by the kernel of the backend, when its process was killed
	// and had not yet ended or answered them. They are not in the rest of this.
	Lost int `json:"lost"`

	// Last is when the last connection that failed began, after the fault was complete.
	Last time.Duration `json:"last"`
	// Known is the same after the first one had failed. Before that a node cannot know,
	// unless it has asked the backend.
	Known time.Duration `json:"known"`
}

// judge sorts the connections of a fault, of as many nodes, in the order of their
// beginning. One counts as failed if it failed or took too long.
func (o *outcome) judge(samples []sample, nodes int) {
	o.Made = len(samples)
	o.Nodes = make([]node, nodes)
	first := make([]time.Time, nodes)
	for _, s := range samples {
		o.Late = max(o.Late, s.Late)
		if !s.failed() {
			continue
		}
		o.Failed = append(o.Failed, s)
		end := s.Begun.Add(s.Took)
		if end.Before(o.Struck) {
			o.Before++
			continue
		}
		n := &o.Nodes[s.Node]
		if s.Kind == lab.Failed { // reset
			n.Lost++
			continue
		}
		n.Failed++
		n.Last = s.Begun.Sub(o.Complete)
		if f := first[s.Node]; f.IsZero() || end.Before(f) {
			first[s.Node] = end
		}
		n.Known = s.Begun.Sub(first[s.Node])
	}
}

// worse is the most and the latest of two.
func (n node) worse(o node) node {
	return node{max(n.Failed, o.Failed), max(n.Lost, o.Lost), max(n.Last, o.Last), max(n.Known, o.Known)}
}

// String says it in a line.
func (o *outcome) String() string {
	var w node
	for i, n := range o.Nodes {
		if i != o.Dense {
			w = w.worse(n)
		}
	}
	d := o.Nodes[o.Dense]
	return fmt.Sprintf("%s %s: %d connections, %d failed or lost, at most %d of a node failed; the last began %s after it, %s after its node's first had failed (dense: %d, %s, %s); %d failed before; back after %s; late by at most %s",
		o.Victim, o.Fault, o.Made, len(o.Failed), w.Failed, millis(w.Last), millis(w.Known),
		d.Failed, millis(d.Last), millis(d.Known), o.Before, millis(o.Healed), millis(o.Late))
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1e3)
}
