// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// endStale ends the flows that steps took the backend from. New Services may have flows
// from the time before them.
func (d *Dataplane) endStale(ctx context.Context, fam *family, steps []step) error {
	list := fam.pending
	for _, s := range steps {
		list = append(list, d.servedBy(s)...)
	}
	if len(list) == 0 {
		return nil
	}
	fam.pending = nil
	ended, err := endStale(ctx, fam.roots.family, list, func() ([]netip.Addr, error) { return nodeAddrs(fam.roots.family) })
	fam.counted.ended += uint64(ended)
	if ended > 0 {
		d.opts.Log.Debug("flows to endpoints that are gone were ended", "flows", ended)
	}
	if err != nil {
		fam.pending = list // the next time
		return fmt.Errorf("end flows to endpoints that are gone: %w", err)
	}
	return nil
}

// servedBy returns what may have flows that a step made stale.
func (d *Dataplane) servedBy(s step) []served {
	var list []served
	if s.old != nil {
		var gone []lb.FrontendKey
		for _, fe := range s.old.Frontends {
			if _, owned := d.owners[fe.FrontendKey]; !owned {
				gone = append(gone, fe.FrontendKey)
			}
		}
		if len(gone) > 0 {
			list = append(list, served{proto: s.name.Proto, frontends: gone, reset: s.old.Terms.Reset})
		}
	}
	if s.next != nil && len(s.next.Frontends) > 0 && s.takesBackends() {
		list = append(list, served{
			proto: s.name.Proto, frontends: keys(s.next.Frontends), keep: s.next.out.keep, reset: s.next.Terms.Reset,
		})
	}
	return list
}

func keys(fes []lb.Frontend) []lb.FrontendKey {
	out := make([]lb.FrontendKey, len(fes))
	for i := range fes {
		out[i] = fes[i].FrontendKey
	}
	return out
}

// takesBackends tells whether flows at the frontends of s.next may have a backend that
// is not one of its own: others had the frontends, or it had other backends, or none.
func (s *step) takesBackends() bool {
	if s.suspect || s.old == nil || len(s.old.out.keep) == 0 && len(s.next.out.keep) > 0 {
		return true
	}
	for be := range s.old.out.keep {
		if !s.next.out.keep[be] {
			return true
		}
	}
	had := map[lb.FrontendKey]bool{}
	for _, fe := range s.old.Frontends {
		had[fe.FrontendKey] = true
	}
	for _, fe := range s.next.Frontends {
		if !had[fe.FrontendKey] {
			return true
		}
	}
	return false
}
