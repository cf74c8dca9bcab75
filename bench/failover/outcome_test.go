// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// at is a connection that begins so many milliseconds after the fault.
func at(ms int, node int, kind lab.Kind, took time.Duration) sample {
	return sample{Node: node, Begun: epoch.Add(time.Duration(ms) * time.Millisecond), Kind: kind, Took: took}
}

func TestJudge(t *testing.T) {
	const quick = time.Millisecond
	o := &outcome{Struck: epoch, Complete: epoch.Add(2 * time.Millisecond)}
	o.judge([]sample{
		at(-500, 0, lab.Refused, quick), // before the fault
		at(-1, 0, lab.OK, quick),
		at(-1, 1, lab.OK, 1100*time.Millisecond), // too late an answer
		at(10, 0, lab.Refused, quick),
		at(11, 0, lab.OK, 900*time.Millisecond),
		at(12, 0, lab.Failed, quick), // it was established
		at(14, 0, lab.Unreachable, quick),
		at(1299, 1, lab.Timeout, 2*time.Second),
		at(1400, 0, lab.OK, quick),
		at(1401, 2, lab.OK, quick),
	}, 3)
	want := []node{
		{Failed: 2, Lost: 1, Last: 12 * time.Millisecond, Known: 3 * time.Millisecond},
		{Failed: 2, Last: 1297 * time.Millisecond, Known: 200 * time.Millisecond},
		{},
	}
	for i, n := range o.Nodes {
		if n != want[i] {
			t.Errorf("node %d: got %+v, want %+v", i, n, want[i])
		}
	}
	if o.Before != 1 || o.Made != 10 || len(o.Failed) != 6 {
		t.Errorf("got %d before, %d made, %d failed, want 1, 10 and 6", o.Before, o.Made, len(o.Failed))
	}
	if got, want := o.Nodes[0].worse(o.Nodes[1]), (node{2, 1, 1297 * time.Millisecond, 200 * time.Millisecond}); got != want {
		t.Errorf("worse: got %+v, want %+v", got, want)
	}
}

func TestLinesAreJudgedByTheirGoals(t *testing.T) {
	for _, tc := range []struct {
		arm, fault string
		n          node
		met, dense string // as one of many nodes, and as the one with many connections
	}{
		{"ebpf", "killed", node{3, 0, time.Second, lastRefused}, "yes", "no"},
		{"ebpf", "killed", node{3, 0, lastRefused, 0}, "yes", "yes"},
		{"ebpf", "killed", node{4, 0, 0, 0}, "no", "no"},
		{"ebpf", "killed", node{1, 0, time.Second, lastRefused + 1}, "no", "no"},
		{"ebpf", "blackholed", node{99, 0, lastSilent, lastSilent}, "yes", "yes"},
		{"ebpf", "blackholed", node{1, 0, lastSilent + 1, 0}, "no", "no"},
		{"ebpf kubelet", "killed", node{99, 0, 0, 0}, "", ""},
	} {
		for i, want := range []string{tc.met, tc.dense} {
			none := &outcome{Arm: tc.arm, Fault: tc.fault, Nodes: []node{{}, {}}}
			o := &outcome{Arm: tc.arm, Fault: tc.fault, Nodes: []node{{}, tc.n}, Dense: i}
			lines := (&report{Outcomes: []*outcome{none, o}}).lines()
			if len(lines) != 2 {
				t.Fatalf("%d lines, want 2", len(lines))
			}
			if _, met := lines[i].judge(); met != want {
				t.Errorf("%s with %s, %+v: met %q, want %q", tc.fault, tc.arm, tc.n, met, want)
			}
		}
	}
}

func TestCountAlone(t *testing.T) {
	var a alone
	back := at(200, 0, lab.OK, 0)
	back.Backend = "backend1"
	a.count([]sample{
		at(-1, 0, lab.Refused, 0), at(1, 0, lab.Refused, 0), at(2, 0, lab.Timeout, 0), at(3, 1, lab.Refused, 0), at(4, 1, lab.OK, 0),
		back, at(201, 0, lab.OK, 0),
	}, "backend1", epoch, epoch.Add(100*time.Millisecond))
	if a.Then != 3 || a.Worst != 2 || a.Back != 1 || a.Others != 2 {
		t.Errorf("got %+v, want 3 failed, at most 2 of a node, 1 of 2 back", a)
	}
}
