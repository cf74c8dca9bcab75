// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/ebpf"
	"github.com/lbproxy/lbproxy/internal/dataplane/iptables"
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
	Dataplane string `json:"dataplane,omitempty"` // that it is about; empty: any
	Name      string `json:"name"`
	Level     string `json:"level"` // levelOK, levelWarn or levelFail
	Detail    string `json:"detail"`
}

// The levels of findings.
const (
	levelOK   = "ok"
	levelWarn = "warn"
	levelFail = "fail"
)

// announcer is told what of a Service's algorithm a dataplane only approximates, when
// that changes; an empty text: nothing any more. It does not block.
type announcer func(name lb.ServiceName, text string)

// kernel is how verbs get at the kernel. Tests have one of their own.
type kernel struct {
	ebpf, iptables access
	listen         func(ctx context.Context, network, addr string) (net.Listener, error) // at health check ports; nil: net.ListenConfig's
	setOOMScore    func(n int) error                                                     // of this process; nil: nothing is set
	setConntrack   func(config.Config, *slog.Logger)                                     // what is not set is logged; nil: nothing is
	openLocalnet   func(config.Config, *slog.Logger)                                     // as setConntrack
	mountBPFFS     func(dir string) (mounted bool, err error)                            // unless there is one; nil: it is not looked at
}

// access is how verbs get at one dataplane.
type access struct {
	open    func(config.Config, announcer, *slog.Logger) (plane, error)
	view    func(config.Config) (view, error) // the error wraps dataplane.ErrNoState if there is nothing
	check   func(config.Config) []finding
	cleanup func(config.Config) (removed []string, err error)

	// leave makes what an earlier agent of this dataplane left go, while serving does its
	// work. No TCP connection ends by it: it returns when the last one that needs this
	// dataplane has, or ctx is done. In most cases there is nothing.
	leave func(ctx context.Context, cfg config.Config, serving plane, log *slog.Logger) error
}

// access returns the dataplane of that name, and the other one.
func (k *kernel) access(name string) (its, others access) {
	if name == config.IPTables {
		return k.iptables, k.ebpf
	}
	return k.ebpf, k.iptables
}

// isRunning tells whether err says that another agent serves this node.
func isRunning(err error) bool {
	return errors.Is(err, ebpf.ErrRunning) || errors.Is(err, iptables.ErrRunning)
}

func realKernel() kernel {
	return kernel{
		setOOMScore:  setOOMScore,
		setConntrack: setConntrack,
		openLocalnet: openLocalnet,
		mountBPFFS:   ebpf.MountBPFFS,
		ebpf: access{
			open: openEBPF,
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
					fs = append(fs, finding{config.EBPF, f.Name, string(f.Level), f.Detail})
				}
				return fs
			},
			cleanup: func(c config.Config) ([]string, error) { return ebpf.Cleanup(ebpfOptions(c, nil)) },
			leave:   leaveEBPF,
		},
		iptables: access{
			open: openIPTables,
			view: func(c config.Config) (view, error) {
				v, err := iptables.OpenView(iptablesOptions(c, nil))
				if err != nil {
					return nil, err
				}
				return v, nil
			},
			check: func(c config.Config) []finding {
				var fs []finding
				for _, f := range iptables.Check(iptablesOptions(c, nil)) {
					fs = append(fs, finding{config.IPTables, f.Name, string(f.Level), f.Detail})
				}
				return fs
			},
			cleanup: func(c config.Config) ([]string, error) { return iptables.Cleanup(iptablesOptions(c, nil)) },
			leave:   leaveIPTables,
		},
	}
}

// ebpfOptions picks what concerns the eBPF dataplane.
func ebpfOptions(c config.Config, log *slog.Logger) ebpf.Options {
	return ebpf.Options{
		CgroupRoot: c.CgroupRoot,
		BPFFS:      c.BPFFS,
		NodeName:   c.NodeName,
		Devices:    c.Devices,
		Local:      c.LocalDetector(),
		NodePorts:  c.NodePortAddresses,
		HashSeed:   c.HashSeed,
		Sizes: ebpf.Sizes{
			Services:  c.MaxServices,
			Frontends: c.MaxFrontends,
			Backends:  c.MaxBackends,
			Slots:     c.MaxSlots,
			Conns:     c.MaxConnections,
			Flows:     c.MaxFlows,

			Affinities:   c.MaxAffinities,
			SourceRanges: c.MaxSourceRanges,
		},
		Log: log,
	}
}
