// SPDX-License-Identifier: Apache-2.0

// Package sim runs the algorithms of internal/algo against servers with queues, event by
// event: see docs/SIMULATOR.md. The command in bench/sim prints and draws what it does.
package sim

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/algo/picktest"
)

// Engine reads tables for new connections. All of a pick's inputs are given, so
// two engines must pick the same, but for rules, which approximate. The oracles and
// trials have no engine: they are always in Go.
type Engine interface {
	// Load makes t the table of all later picks.
	Load(t algo.Table) error
	// Pick returns a member, or -1 if the table is empty. in.Load is set.
	Pick(in *algo.Input) (int, error)
	Close() error
}

// NewEngine returns an engine by its name.
func NewEngine(name string) (Engine, error) {
	switch name {
	case "ref":
		return &reference{}, nil
	case "bpf":
		return newKernel()
	case "iptables":
		return newRules(0), nil
	}
	return nil, fmt.Errorf("engine %q: want ref, bpf or iptables", name)
}

// reference is the engine in Go.
type reference struct{ table algo.Table }

func (e *reference) Load(t algo.Table) error {
	e.table = t
	return nil
}

func (e *reference) Pick(in *algo.Input) (int, error) { return algo.Pick(e.table, *in), nil }

func (e *reference) Close() error { return nil }

// kernel is the engine that the eBPF dataplane has: bpf/lib/pick.h in the kernel,
// run and not attached.
type kernel struct {
	*picktest.Kernel
	loads []algo.Load // of the table's members, if it has costs
}

func newKernel() (Engine, error) {
	k, err := picktest.NewKernel()
	var rejected *ebpf.VerifierError // is a permission error too
	if errors.Is(err, os.ErrPermission) && !errors.As(err, &rejected) {
		return nil, fmt.Errorf("engine bpf needs root, or CAP_BPF and CAP_PERFMON: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("engine bpf: %w", err)
	}
	return &kernel{Kernel: k}, nil
}

func (e *kernel) Load(t algo.Table) error {
	e.loads = nil
	if t.Cost != algo.NoCost {
		e.loads = make([]algo.Load, t.N)
	}
	return e.Kernel.Load(t)
}

func (e *kernel) Pick(in *algo.Input) (int, error) {
	for m := range e.loads {
		e.loads[m] = in.Load(m)
	}
	if err := e.SetLoads(e.loads); err != nil {
		return 0, err
	}
	return e.Kernel.Pick(*in)
}
