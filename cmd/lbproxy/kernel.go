// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"net/netip"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/ebpf"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// plane is a dataplane that runs.
type plane interface {
	dataplane.Dataplane
	dataplane.StatsReader
	dataplane.LoadReader
	Run(ctx context.Context) error
	Writes() uint64 // changes of kernel state so far
	Close() error   // leaves everything in the kernel
}

// view reads what is in the kernel, with or without an agent.
type view interface {
	Services() ([]dataplane.ServiceView, error)
	Connections(limit int) ([]dataplane.ConnectionView, error) // 0: all
	Explain(from netip.Addr, to lb.FrontendKey) (dataplane.Explanation, error)
	Close() error
}

// finding is one thing that was looked at on a node.
type finding struct {
	Name   string `json:"name"`
	Level  string `json:"level"` // levelOK, levelWarn or levelFail
	Detail string `json:"detail"`
}

// The levels of findings.
const (
	levelOK   = "ok"
	levelWarn = "warn"
	levelFail = "fail"
)

// kernel is how verbs get at the kernel. Tests have one of their own.
type kernel struct {
	open    func(config.Config, *slog.Logger) (plane, error)
	view    func(config.Config) (view, error)
	check   func(config.Config) []finding
	cleanup func(config.Config) (removed []string, err error)
}

func realKernel() kernel {
	return kernel{
		open: func(c config.Config, log *slog.Logger) (plane, error) {
			d, err := ebpf.Open(ebpfOptions(c, log))
			if err != nil {
				return nil, err // and no plane: a nil *Dataplane is not a nil plane
			}
			return d, nil
		},
		view: func(c config.Config) (view, error) {
			v, err := ebpf.OpenView(c.BPFFS)
			if err != nil {
				return nil, err
			}
			return v, nil
		},
		check: func(c config.Config) []finding {
			var fs []finding
			for _, f := range ebpf.Check(ebpfOptions(c, nil)) {
				fs = append(fs, finding{f.Name, string(f.Level), f.Detail})
			}
			return fs
		},
		cleanup: func(c config.Config) ([]string, error) { return ebpf.Cleanup(ebpfOptions(c, nil)) },
	}
}

// ebpfOptions picks what concerns the dataplane.
func ebpfOptions(c config.Config, log *slog.Logger) ebpf.Options {
	return ebpf.Options{
		CgroupRoot:        c.CgroupRoot,
		BPFFS:             c.BPFFS,
		NodeName:          c.NodeName,
		Devices:           c.Devices,
		PodRanges:         c.ClusterCIDR,
		NodePortAddresses: c.NodePortAddresses,
		HashSeed:          c.HashSeed,
		Sizes: ebpf.Sizes{
			Services:  c.MaxServices,
			Frontends: c.MaxFrontends,
			Backends:  c.MaxBackends,
			Slots:     c.MaxSlots,
			Conns:     c.MaxConnections,
			Flows:     c.MaxFlows,
		},
		Log: log,
	}
}
