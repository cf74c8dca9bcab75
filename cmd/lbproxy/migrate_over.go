// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/iptables"
	"github.com/lbproxy/lbproxy/internal/migrate"
)

// stopKubeProxy and startKubeProxy are the usual ways in a cluster.
const (
	stopKubeProxy = `kubectl -n kube-system patch daemonset kube-proxy --type=merge ` +
		`-p '{"spec":{"template":{"spec":{"nodeSelector":{"lbproxy.io/kube-proxy":"wanted"}}}}}'`
	startKubeProxy = `kubectl -n kube-system patch daemonset kube-proxy --type=merge ` +
		`-p '{"spec":{"template":{"spec":{"nodeSelector":{"lbproxy.io/kube-proxy":null}}}}}'`
)

// askTimeout is for an answer of the agent.
const askTimeout = 5 * time.Second

// takeOver removes what kube-proxy has, when lbproxy serves.
func (a *app) takeOver(ctx context.Context, cfg config.Config, found *migrate.Found, m *migration) error {
	steps := found.Steps()
	if len(steps) == 0 && len(found.Processes) == 0 {
		fmt.Fprintln(a.stdout, "nothing of kube-proxy's is left to remove")
		return a.tellStays(found)
	}
	inTheWay := a.mayTakeOver(ctx, cfg, found)
	if m.dryRun {
		for _, s := range steps {
			fmt.Fprintln(a.stdout, "would remove", s.What)
		}
		if inTheWay != nil {
			fmt.Fprintln(a.stdout, "would refuse now:", oneLine(inTheWay))
		}
		return a.tellStays(found)
	}
	if inTheWay != nil && (!m.force || errors.Is(inTheWay, errStillRuns) || errors.Is(inTheWay, errCannotTell)) {
		return inTheWay
	}
	if err := a.keepTracking(ctx, cfg); err != nil {
		return fmt.Errorf("keep connection tracking: %w", err)
	}
	for i, s := range steps {
		if m.steps > 0 && i >= m.steps {
			fmt.Fprintf(a.stdout, "%d steps are left\n", len(steps)-i)
			return nil
		}
		if err := s.Do(ctx); err != nil {
			return fmt.Errorf("remove %s: %w", s.What, err)
		}
		fmt.Fprintln(a.stdout, "removed", s.What)
	}
	found, err := migrate.Look(ctx)
	if err != nil {
		return err
	}
	if left := found.Steps(); len(left) > 0 {
		return fmt.Errorf("somebody wrote kube-proxy's rules again meanwhile: %s; see that no kube-proxy runs, and try again", left[0].What)
	}
	return a.tellStays(found)
}

// keepTracking makes connection tracking go on without kube-proxy's rules, which the rules
// of the iptables dataplane do as well. An agent with eBPF has made that already, unless
// kube-proxy came later; it removes it when no connection needs it any more.
func (a *app) keepTracking(ctx context.Context, cfg config.Config) error {
	v, err := a.kernel.ebpf.view(cfg)
	if errors.Is(err, dataplane.ErrNoState) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(v.Close(), iptables.Keep(ctx))
}

func (a *app) tellStays(found *migrate.Found) error {
	for _, s := range found.Stays() {
		if _, err := fmt.Fprintln(a.stdout, "stays:", s); err != nil {
			return err
		}
	}
	return nil
}

// errStillRuns says that a kube-proxy would write its rules again.
var errStillRuns = errors.New("kube-proxy runs on this node and would write its rules again")

// errCannotTell says that a kube-proxy may run that is not seen.
var errCannotTell = errors.New("cannot tell whether kube-proxy runs: hostPID: true is needed")

// mayTakeOver tells what is in the way.
func (a *app) mayTakeOver(ctx context.Context, cfg config.Config, found *migrate.Found) error {
	if len(found.Processes) > 0 {
		return fmt.Errorf("%w (process %d); stop it first: %s", errStillRuns, found.Processes[0], stopKubeProxy)
	}
	if found.Blind {
		return errCannotTell
	}
	if err := agentServes(ctx, cfg); err != nil {
		return err
	}
	want, err := desired(ctx, cfg)
	if err != nil {
		return err
	}
	return a.withView(cfg, func(v view) error {
		svcs, err := v.Services()
		if err != nil {
			return err
		}
		return missing(want.services, svcs)
	})
}

// missing says which Services that have backends are not in the kernel.
func missing(want []*dataplane.Service, have []dataplane.ServiceView) error {
	is := map[string]bool{}
	for _, svc := range have {
		is[svc.Name] = true
	}
	first, n := "", 0
	for _, svc := range want {
		if name := svc.Name.String(); len(svc.Cluster.Backends) > 0 && !is[name] {
			if n++; n == 1 {
				first = name
			}
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("lbproxy does not serve %d Services, such as %s: look at its log", n, first)
}

// agentServes tells why the agent of this node does not serve yet.
func agentServes(ctx context.Context, cfg config.Config) error {
	lock, err := iptables.Lock(iptablesOptions(cfg, nil))
	if err == nil {
		lock.Close()
		return errors.New("no agent of lbproxy runs on this node: start it first (lbproxy run), and wait until it is ready")
	}
	if !isRunning(err) {
		return fmt.Errorf("is an agent of lbproxy running: %w", err)
	}
	if !cfg.HealthzBindAddress.IsValid() { // it is not to be asked
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+cfg.HealthzBindAddress.String()+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("the agent of lbproxy does not answer: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the agent of lbproxy is not ready (%s): wait, or look at its log", resp.Status)
	}
	return nil
}
