// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/ebpf"
	"github.com/lbproxy/lbproxy/internal/dataplane/iptables"
	"github.com/lbproxy/lbproxy/internal/migrate"
)

// giveBack makes lbproxy go, when kube-proxy serves.
func (a *app) giveBack(ctx context.Context, cfg config.Config, found *migrate.Found, m *migration) error {
	var left []string // of lbproxy
	for _, plane := range []struct {
		name string
		access
	}{{"rules of the iptables dataplane", a.kernel.iptables}, {"programs and tables of the eBPF dataplane", a.kernel.ebpf}} {
		v, err := plane.view(cfg)
		if errors.Is(err, dataplane.ErrNoState) {
			continue
		}
		left = append(left, plane.name) // also what cannot be read
		if err == nil {
			v.Close()
		}
	}
	inTheWay := a.mayGiveBack(ctx, cfg, found)
	if m.dryRun {
		for _, what := range left {
			fmt.Fprintln(a.stdout, "would remove", what)
		}
		if inTheWay != nil {
			fmt.Fprintln(a.stdout, "would refuse now:", oneLine(inTheWay))
		}
		return nil
	}
	if inTheWay != nil && !m.force {
		return inTheWay
	}
	lock, err := iptables.Lock(iptablesOptions(cfg, nil)) // no agent starts meanwhile
	if err != nil {
		return agentStillRuns(err)
	}
	if found.Mode() != "nftables" { // which does not serve 127.0.0.1
		err = iptables.GiveLocalnet(iptablesOptions(cfg, nil))
	}
	if err == nil {
		err = a.drain(ctx, cfg, m)
	}
	if errClose := lock.Close(); err != nil || errClose != nil {
		return errors.Join(err, errClose)
	}
	if err := a.cleanup(cfg); err != nil { // ipsets, and what was only kept for the eBPF dataplane
		return err
	}
	fmt.Fprintln(a.stdout, "kube-proxy serves alone")
	return nil
}

// errStillNeeded says that connections need what is left.
var errStillNeeded = errors.New("connections are still translated by eBPF")

// drain makes both dataplanes go. Rules go at once: connection tracking goes on with what
// they began. Programs stay for connections that they translate by themselves.
func (a *app) drain(ctx context.Context, cfg config.Config, m *migration) error {
	if _, err := iptables.LeaveRules(ctx); err != nil {
		return fmt.Errorf("remove rules of the iptables dataplane: %w", err)
	}
	log, _ := newLogger(a.stderr, cfg)
	if m.wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, m.wait)
		defer cancel()
	}
	if err := ebpf.Drain(ctx, ebpfOptions(cfg, log), iptables.Tracker{}); err != nil {
		return agentStillRuns(err)
	}
	if ctx.Err() == nil {
		return nil
	}
	v, err := a.kernel.ebpf.view(cfg)
	if errors.Is(err, dataplane.ErrNoState) {
		return nil
	}
	if err != nil {
		return err
	}
	defer v.Close()
	conns, err := v.Connections(0)
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: %d; new ones are kube-proxy's. Run the same again to go on, or lbproxy cleanup to end them", errStillNeeded, len(conns))
}

// agentStillRuns says what to do where an agent runs.
func agentStillRuns(err error) error {
	if isRunning(err) {
		return fmt.Errorf("%w: stop it first; what it has in the kernel goes on serving: kubectl -n lbproxy delete daemonset lbproxy", err)
	}
	return err
}

// mayGiveBack tells what is in the way.
func (a *app) mayGiveBack(ctx context.Context, cfg config.Config, found *migrate.Found) error {
	switch {
	case len(found.Processes) == 0 && found.Blind:
		return errCannotTell
	case len(found.Processes) == 0:
		return errors.New("no kube-proxy runs on this node; start it first: " + startKubeProxy)
	case !found.Serves():
		return errors.New("kube-proxy has no rules on this node yet: wait, or look at its log")
	}
	s, err := a.bothSides(ctx, cfg, found)
	if err != nil {
		return err
	}
	if err := migrate.Stale(s.rules, s.services, s.opts); err != nil {
		return err
	}
	lock, err := iptables.Lock(iptablesOptions(cfg, nil))
	if err != nil {
		return agentStillRuns(err)
	}
	return lock.Close()
}
