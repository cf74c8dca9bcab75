// SPDX-License-Identifier: Apache-2.0

// Package migrate takes a node from kube-proxy to lbproxy and back. It reads what
// kube-proxy has in the kernel, compares that with what lbproxy would do, and removes it.
// Where it stands is always read from the kernel: there is no other memory of a migration,
// so that one that was interrupted goes on. See docs/adr/0011-migration.md.
package migrate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/internal/dataplane/iptables"
	"github.com/lbproxy/lbproxy/internal/lb"
)

var families = []lb.Family{lb.IPv4, lb.IPv6}

// ipvsDevice is where kube-proxy's former mode ipvs has its addresses.
const ipvsDevice = "kube-ipvs0"

// Found is what of kube-proxy is on a node.
type Found struct {
	Processes []int // ids, of the node's network namespace
	Blind     bool  // not all processes of the node can be seen: no Processes says nothing

	tables []removal
	saved  []iptables.Saved
	nft    []lb.Family // with a table of nftables
	ipvs   bool
}

// Look reads it, in the network namespace of the calling thread.
func Look(ctx context.Context) (*Found, error) {
	f := &Found{}
	var err error
	if f.saved, err = iptables.SaveAll(ctx); err != nil {
		return nil, fmt.Errorf("read rules: %w", err)
	}
	for _, s := range f.saved {
		if r := plan(s); len(r.jumps)+len(r.chains)+len(r.kept) > 0 {
			f.tables = append(f.tables, r)
		}
	}
	if has, err := iptables.HasTables(iptables.KubeProxyTable); err == nil { // else the kernel has no nftables
		for i, family := range families {
			if has[i] {
				f.nft = append(f.nft, family)
			}
		}
	}
	proc := procfs{"/proc", os.Readlink}
	if f.Processes, f.Blind, err = proc.processes(); err != nil {
		return nil, err
	}
	_, err = net.InterfaceByName(ipvsDevice)
	f.ipvs = err == nil
	return f, nil
}

// Serves tells whether rules are there by which kube-proxy serves, of either family.
func (f *Found) Serves() bool { return len(f.nft) > 0 || slices.ContainsFunc(f.saved, reached) }

// Mode is kube-proxy's mode by what it has: nftables, iptables, or nothing.
func (f *Found) Mode() string {
	switch {
	case len(f.nft) > 0:
		return "nftables"
	case len(f.tables) > 0:
		return "iptables"
	}
	return ""
}

// Stays tells what of kube-proxy would still be there after all steps, and why.
func (f *Found) Stays() []string {
	var all []string
	for _, t := range f.tables {
		for chain, why := range t.kept {
			all = append(all, fmt.Sprintf("chain %s of %s: %s", chain, t.saved, why))
		}
	}
	slices.Sort(all)
	if f.ipvs {
		all = append(all, "device "+ipvsDevice+" of the mode ipvs: remove it with kube-proxy --cleanup of the version that made it")
	}
	return all
}

// ForwardRefuses tells whether the node may drop or reject what is forwarded.
func (f *Found) ForwardRefuses() bool {
	return slices.ContainsFunc(f.saved, func(s iptables.Saved) bool { return s.Table == "filter" && refuses(s.Lines, "FORWARD") })
}

// Step is one change of the kernel. It is made wholly or not at all, and none depends on
// how often the ones before it were made.
type Step struct {
	What string // for people
	Do   func(ctx context.Context) error
}

// Steps returns what removes everything of kube-proxy's but what Stays. First the jumps
// go, those of table nat before the others: from then on nobody new is translated, while
// what was translated before still passes. Then the chains, which nothing reaches.
func (f *Found) Steps() []Step {
	var steps []Step
	ordered := slices.Clone(f.tables)
	slices.SortStableFunc(ordered, func(a, b removal) int { return strings.Compare(b.saved.Table, a.saved.Table) }) // nat, mangle, filter
	for _, r := range ordered {
		if len(r.jumps) > 0 {
			steps = append(steps, r.step(fmt.Sprintf("%d jumps of %s", len(r.jumps), r.saved), r.cut()))
		}
	}
	if len(f.nft) > 0 {
		from := slices.Clone(f.nft)
		steps = append(steps, Step{
			What: fmt.Sprintf("table %s of nftables (%s)", iptables.KubeProxyTable, joinFamilies(from)),
			Do:   func(context.Context) error { return iptables.DeleteTables(iptables.KubeProxyTable, from) },
		})
	}
	for _, r := range ordered {
		if len(r.chains) > 0 {
			steps = append(steps, r.step(fmt.Sprintf("%d chains of %s", len(r.chains), r.saved), r.clear()))
		}
	}
	return steps
}

func (r removal) step(what, text string) Step {
	return Step{what, func(ctx context.Context) error { return iptables.Restore(ctx, r.saved.Family, r.saved.Backend, text) }}
}

func joinFamilies(fs []lb.Family) string {
	var names []string
	for _, f := range fs {
		names = append(names, f.String())
	}
	return strings.Join(names, ", ")
}

// Rules reads what kube-proxy's rules do. The error wraps iptables.ErrNoNFT where they are
// in nftables and there is no program that shows them.
func (f *Found) Rules(ctx context.Context) (*Rules, error) {
	rules := newRules()
	for _, s := range f.saved {
		rules.addSaved(s)
	}
	var errs []error
	for _, family := range f.nft {
		text, err := iptables.ListNFT(ctx, family, iptables.KubeProxyTable)
		if err == nil {
			err = rules.addNFT(family, text)
		}
		errs = append(errs, err)
	}
	return rules, errors.Join(errs...)
}
