// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// Cleanup removes what lbproxy has in the network namespace of the calling thread: its
// jumps, chains and ipsets, of both backends and families, and reservations of source
// ports. Built-in chains, the rules of others and what conntrack knows of connections stay,
// so that these go on. It says what it
// removed. It returns an error that wraps ErrRunning while an agent runs.
func Cleanup(opts Options) (removed []string, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("root is needed")
	}
	lock, err := Lock(opts)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	return cleanup(opts.orDefault())
}

// cleanup is Cleanup by who holds the lock. Whatever can be removed is.
func cleanup(opts Options) (removed []string, err error) {
	var errs []error
	if closeLocalnet(opts, systemSettings(opts.Log)) {
		removed = append(removed, "sysctl route_localnet")
	}
	for _, backend := range []string{nftBackend, legacyBackend} {
		for _, f := range families {
			words, err := cleanupTables(f, backend)
			removed, errs = append(removed, words...), append(errs, err)
		}
	}
	n, err := cleanupSets()
	if n > 0 {
		removed = append(removed, fmt.Sprintf("%d ipsets", n))
	}
	n, errPorts := endReservations()
	if n > 0 {
		removed = append(removed, fmt.Sprintf("%d entries of conntrack that reserve source ports", n))
	}
	return removed, errors.Join(append(errs, err, errPorts)...)
}

// cleanupTables removes jumps and chains of one family and backend. What is not
// installed or not loaded is not looked at, so that nothing is loaded by that.
func cleanupTables(f lb.Family, backend string) (removed []string, err error) {
	have := haveTables(f, backend)
	if !slices.ContainsFunc(tables, have) {
		return nil, nil
	}
	r, err := openRunner(f, backend, runnerOptions{})
	if err != nil {
		return nil, nil
	}
	for _, t := range tables {
		if !have(t) {
			continue
		}
		words, err := r.removeAll(context.Background(), t)
		if err != nil {
			return removed, fmt.Errorf("%s, %s backend: table %s: %w", f, backend, t, err)
		}
		removed = append(removed, words...)
	}
	return removed, nil
}

// removeAll removes the jumps and all chains of lbproxy's own from a table.
func (r *runner) removeAll(ctx context.Context, t table) (removed []string, err error) {
	chains, err := r.chains(ctx, t)
	if err != nil || len(chains) == 0 {
		return nil, err // no jump without a chain
	}
	jumps, err := r.dropJumps(ctx, t.builtins())
	if err != nil {
		return nil, err
	}
	err = r.restore(ctx, change{t: {del: slices.Sorted(maps.Keys(chains))}})
	if err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("%d chains and %d jumps of table %s (%s, %s)", len(chains), jumps, t, r.family, r.kind)}, nil
}

// cleanupSets destroys all ipsets of lbproxy's own.
func cleanupSets() (n int, err error) {
	k, err := openIPSets()
	if err != nil {
		return 0, err
	}
	defer k.close()
	if errors.Is(k.available(), errNoIPSet) {
		return 0, nil
	}
	heads, err := k.heads()
	if err != nil {
		return 0, fmt.Errorf("read ipsets: %w", err)
	}
	var errs []error
	for _, h := range heads {
		if !strings.HasPrefix(h.name, prefix) {
			continue
		}
		if err := k.destroy(h.name); err != nil {
			errs = append(errs, fmt.Errorf("ipset %s: destroy: %w", h.name, err))
			continue
		}
		n++
	}
	return n, errors.Join(errs...)
}
