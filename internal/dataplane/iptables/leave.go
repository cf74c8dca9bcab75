// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// Lock keeps others from opening the dataplane until what it returns is closed. The error
// wraps ErrRunning if somebody has it open.
func Lock(opts Options) (*os.File, error) {
	opts = opts.orDefault()
	if err := os.MkdirAll(filepath.Dir(opts.LockFile), 0o755); err != nil {
		return nil, err
	}
	return lockFile(opts.LockFile)
}

// keepChain is what Leave leaves for as long as it waits. Nothing leads to it. Netfilter
// follows connections, and so translates those that it knows, only as long as some rule
// of the network namespace asks for their state; this one does.
const keepChain = "LBP-KEEP"

// translatedPeriod is the time between two looks for connections that netfilter
// translates.
const translatedPeriod = 10 * time.Second

// Leave removes what an earlier agent left, while another dataplane serves this node and
// the caller holds Lock. TCP and SCTP connections go on: netfilter translates those that
// it knows without rules for them. UDP flows to frontends end, so that their next packets
// come to the other dataplane; frontends is called if there was something to remove. When
// told has been called, only keepChain is left; Leave returns when there is no connection
// to a frontend any more that needs it, or when ctx is done. Then the next Leave goes on.
func Leave(ctx context.Context, opts Options, frontends func() []lb.FrontendKey, told func()) error {
	found, err := leaveRules(ctx)
	if !found || err != nil {
		return err
	}
	at := frontends()
	if err := endUDP(ctx, at); err != nil {
		return err
	}
	told()
	for {
		waits, err := anyTranslated(at)
		if err != nil {
			return err
		}
		if !waits {
			_, err := cleanup(opts.orDefault())
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(translatedPeriod):
		}
	}
}

// leaveRules removes everything but keepChain, and tells whether there was something.
func leaveRules(ctx context.Context) (found bool, err error) {
	for _, backend := range []string{nftBackend, legacyBackend} {
		for _, f := range families {
			have := haveTables(f, backend)
			if !have(natTable) {
				continue
			}
			r, err := openRunner(f, backend, runnerOptions{})
			if err != nil {
				continue // it is not installed
			}
			is, err := r.leave(ctx, have(filterTable))
			if err != nil {
				return false, fmt.Errorf("%s, %s backend: %w", f, backend, err)
			}
			found = found || is
		}
	}
	if found {
		_, err = cleanupSets()
	}
	return found, err
}

// leave is leaveRules for one family and backend.
func (r *runner) leave(ctx context.Context, filter bool) (found bool, err error) {
	chains, err := r.chains(ctx, natTable)
	if err != nil || len(chains) == 0 {
		return false, err
	}
	err = r.restore(ctx, change{natTable: {put: []chain{{keepChain, []string{"-m conntrack --ctstate DNAT"}}}}})
	if err != nil {
		return true, err
	}
	if filter {
		if _, err := r.removeAll(ctx, filterTable); err != nil {
			return true, err
		}
	}
	if _, err := r.dropJumps(ctx, natTable.builtins()); err != nil {
		return true, err
	}
	delete(chains, keepChain)
	return true, r.restore(ctx, change{natTable: {del: slices.Sorted(maps.Keys(chains))}})
}

// endUDP ends the UDP flows to frontends.
func endUDP(ctx context.Context, frontends []lb.FrontendKey) error {
	var udp []lb.FrontendKey
	for _, key := range frontends {
		if key.Proto == lb.UDP {
			udp = append(udp, key)
		}
	}
	var errs []error
	for _, f := range families {
		_, err := endStale(ctx, f, []served{{proto: lb.UDP, frontends: udp}}, func() ([]netip.Addr, error) { return nodeAddrs(f) })
		if err != nil {
			errs = append(errs, fmt.Errorf("end UDP flows of %s: %w", f, err))
		}
	}
	return errors.Join(errs...)
}

// anyTranslated tells whether netfilter translates connections to one of frontends, also
// those that have ended and are remembered; or has given connections to anywhere another
// port, which it does to those that have the same port and backend as one of them. The
// unspecified address stands for every one.
func anyTranslated(frontends []lb.FrontendKey) (found bool, err error) {
	is := map[lb.FrontendKey]bool{}
	for _, key := range frontends {
		is[key] = true
	}
	c, err := openConntrack()
	if err != nil {
		return false, err
	}
	defer c.close()
	for _, f := range families {
		for _, proto := range []lb.Proto{lb.TCP, lb.SCTP} {
			for _, status := range []uint32{statusDNAT, statusSNAT} {
				err := c.dump(query{family: f, proto: proto, status: status}, func(e *entry) error {
					any := netip.AddrPortFrom(f.Unspecified(), e.frontend.Port())
					found = found || e.moved && !e.ended() ||
						e.natted && (is[lb.FrontendKey{Addr: e.frontend, Proto: proto}] || is[lb.FrontendKey{Addr: any, Proto: proto}])
					return nil
				})
				if err != nil {
					return false, err
				}
			}
		}
	}
	return found, nil
}
