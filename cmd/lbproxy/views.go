// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// openView opens what there is in the kernel: one dataplane's state or, while one takes
// over from the other, that of both.
func (a *app) openView(cfg config.Config) (view, error) {
	var views both
	var none, failed error
	for _, plane := range []access{a.kernel.ebpf, a.kernel.iptables} {
		v, err := plane.view(cfg)
		switch {
		case err == nil:
			views = append(views, v)
		case !errors.Is(err, dataplane.ErrNoState):
			failed = errors.Join(failed, err)
		case none == nil:
			none = err
		}
	}
	switch {
	case len(views) == 0 && failed != nil:
		return nil, failed
	case len(views) == 0:
		return nil, none
	case failed != nil: // what the other one has is worth seeing
		fmt.Fprintln(a.stderr, "lbproxy:", oneLine(failed))
	}
	if len(views) == 1 {
		return views[0], nil
	}
	return views, nil
}

// both are two dataplanes at once: what the first one passes on, the second one gets.
type both []view

// Services returns those of both; of one that both have, what the first one does.
func (vs both) Services() ([]dataplane.ServiceView, error) {
	var all []dataplane.ServiceView
	known := map[string]bool{}
	for _, v := range vs {
		svcs, err := v.Services()
		if err != nil {
			return nil, err
		}
		for _, svc := range svcs {
			if !known[svc.Name] {
				known[svc.Name] = true
				all = append(all, svc)
			}
		}
	}
	return all, nil
}

// Connections returns those of both, at most limit; 0 means all.
func (vs both) Connections(limit int) ([]dataplane.ConnectionView, error) {
	var all []dataplane.ConnectionView
	for _, v := range vs {
		left := limit - len(all)
		if limit > 0 && left <= 0 {
			break
		}
		conns, err := v.Connections(max(0, left))
		if err != nil {
			return nil, err
		}
		all = append(all, conns...)
	}
	return all, nil
}

// Explain tells what the first one does that does not let the connection pass.
func (vs both) Explain(from netip.Addr, to lb.FrontendKey) (e dataplane.Explanation, err error) {
	var steps []string
	for _, v := range vs {
		if e, err = v.Explain(from, to); err != nil {
			return e, err
		}
		steps = append(steps, e.Steps...)
		if e.Decision != "pass" {
			break
		}
	}
	e.Steps = steps
	return e, nil
}

// Close closes both.
func (vs both) Close() error {
	var errs []error
	for _, v := range vs {
		errs = append(errs, v.Close())
	}
	return errors.Join(errs...)
}
