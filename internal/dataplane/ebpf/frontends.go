// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/lbproxy/lbproxy/internal/dataplane"
)

// setFrontends makes want the frontends of svc. If one cannot be written, all
// are as before.
func (d *Dataplane) setFrontends(svc *service, want *dataplane.Service) error {
	keys := make([]lbFrontendKey, 0, len(want.Frontends))
	var undo []func() error
	for _, f := range want.Frontends {
		key, value := frontendKeyOf(f.FrontendKey), frontendValueOf(f, svc.id, want.Terms)
		old, had := d.frontends[key]
		if had && old == value {
			keys = append(keys, key)
			continue
		}
		if err := d.putFrontend(key, value); err != nil {
			for _, u := range undo {
				err = errors.Join(err, u())
			}
			return fmt.Errorf("frontend %s: %w", f.FrontendKey, err)
		}
		undo = append(undo, func() error { return d.restoreFrontend(key, old, had) })
		keys = append(keys, key)
	}
	var errs []error
	for _, key := range svc.frontends {
		if slices.Contains(keys, key) {
			continue
		}
		if err := d.dropFrontend(svc, key); err != nil {
			errs = append(errs, err)
			keys = append(keys, key) // it is still there, and still ours to remove
		}
	}
	svc.frontends = keys
	return errors.Join(errs...)
}

func (d *Dataplane) restoreFrontend(key lbFrontendKey, old lbFrontend, had bool) error {
	if had {
		return d.putFrontend(key, old)
	}
	return d.removeFrontend(key)
}

// dropFrontend removes a frontend unless another Service has taken it over.
func (d *Dataplane) dropFrontend(svc *service, key lbFrontendKey) error {
	if v, ok := d.frontends[key]; !ok || v.Service != svc.id {
		return nil
	}
	if err := d.removeFrontend(key); err != nil {
		return fmt.Errorf("remove frontend %s: %w", frontendFrom(key), err)
	}
	return nil
}
