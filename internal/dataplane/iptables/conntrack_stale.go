// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// served says which entries to some frontends may stay. One frontend may be in several
// of a list: what one of them keeps is kept.
type served struct {
	proto     lb.Proto
	frontends []lb.FrontendKey
	keep      map[netip.AddrPort]bool // backends
	reset     bool                    // established TCP connections end, too
}

// endStale deletes the entries of family f that lead clients of the frontends of list
// to where they should not go. These are the ones whose backend is not kept, of UDP, of
// SCTP, and of TCP as long as nobody has answered (SYN_SENT); and those that were not
// balanced at all, because they are older than the Service. A TCP connection that the
// backend has answered (SYN_RECV) is as good as established: both end only with reset,
// and only if they were balanced. Node ports, whose address is the unspecified one,
// are meant at the addresses that nodeAddrs returns and at those of loopback; it is
// called only if there are any.
//
// It reads the table once for each protocol of list, in the network namespace of the
// calling thread, and returns how many entries it deleted. An entry that cannot be
// deleted is named in the error and costs only itself.
func endStale(ctx context.Context, f lb.Family, list []served, nodeAddrs func() ([]netip.Addr, error)) (ended int, err error) {
	for _, proto := range []lb.Proto{lb.UDP, lb.SCTP, lb.TCP} {
		rules, err := newStaleRules(f, proto, list, nodeAddrs)
		if err != nil {
			return ended, err
		}
		if rules == nil {
			continue
		}
		n, err := rules.end(ctx)
		if ended += n; err != nil {
			return ended, err
		}
	}
	return ended, nil
}

// staleRule is what a frontend's entries are judged by.
type staleRule struct {
	keep  []map[netip.AddrPort]bool
	reset bool
}

func (r *staleRule) keeps(backend netip.AddrPort) bool {
	for _, keep := range r.keep {
		if keep[backend] {
			return true
		}
	}
	return false
}

// staleRules are the rules for all frontends of a protocol.
type staleRules struct {
	query     query
	frontends map[netip.AddrPort]*staleRule
	ports     map[uint16]*staleRule // node ports
	node      map[netip.Addr]bool
}

// newStaleRules returns the rules for the frontends of list with this family and
// protocol, or nil if there are none.
func newStaleRules(f lb.Family, proto lb.Proto, list []served, nodeAddrs func() ([]netip.Addr, error)) (*staleRules, error) {
	rules := &staleRules{
		query:     query{family: f, proto: proto},
		frontends: map[netip.AddrPort]*staleRule{},
		ports:     map[uint16]*staleRule{},
	}
	for _, s := range list {
		if s.proto != proto {
			continue
		}
		for _, key := range s.frontends {
			if lb.FamilyOf(key.Addr.Addr()) != f {
				continue
			}
			if key.Addr.Addr().IsUnspecified() {
				addRule(rules.ports, key.Addr.Port(), s)
			} else {
				addRule(rules.frontends, key.Addr, s)
			}
		}
	}
	if len(rules.frontends)+len(rules.ports) == 0 {
		return nil, nil
	}
	if len(rules.ports) > 0 {
		addrs, err := nodeAddrs()
		if err != nil {
			return nil, fmt.Errorf("conntrack: addresses of the node: %w", err)
		}
		rules.node = map[netip.Addr]bool{}
		for _, a := range addrs {
			rules.node[a] = true
		}
	}
	rules.narrow()
	return rules, nil
}

func addRule[K comparable](rules map[K]*staleRule, key K, s served) {
	r := rules[key]
	if r == nil {
		r = &staleRule{}
		rules[key] = r
	}
	r.keep = append(r.keep, s.keep)
	r.reset = r.reset || s.reset
}

// narrow lets the kernel filter by address and port where all frontends have the same.
func (r *staleRules) narrow() {
	ports, addrs := map[uint16]bool{}, map[netip.Addr]bool{}
	for p := range r.ports {
		ports[p] = true
	}
	for a := range r.frontends {
		ports[a.Port()], addrs[a.Addr()] = true, true
	}
	if len(ports) == 1 {
		for p := range ports {
			r.query.port = p
		}
	}
	if len(addrs) == 1 && len(r.ports) == 0 {
		for a := range addrs {
			r.query.addr = a
		}
	}
}

// stale tells whether the entry must go.
func (r *staleRules) stale(f *flow) bool {
	rule := r.frontends[f.frontend]
	if rule == nil {
		if rule = r.ports[f.frontend.Port()]; rule == nil || !r.atNode(f.frontend.Addr()) {
			return false
		}
	}
	if rule.keeps(f.backend) {
		return false
	}
	return f.proto != lb.TCP || f.state == tcpSynSent || rule.reset && f.natted
}

func (r *staleRules) atNode(a netip.Addr) bool { return a.IsLoopback() || r.node[a] }

// end deletes the stale entries as it reads them, so that little time passes between
// the look at an entry and its end.
func (r *staleRules) end(ctx context.Context) (ended int, err error) {
	reader, err := openConntrack()
	if err != nil {
		return 0, err
	}
	defer reader.close()
	writer, err := openConntrack()
	if err != nil {
		return 0, err
	}
	defer writer.close()
	var failed error
	err = reader.dump(r.query, func(e *entry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !r.stale(&e.flow) {
			return nil
		}
		gone, err := writer.delete(r.query.family, e)
		if err != nil && failed == nil {
			failed = fmt.Errorf("%s %s to %s at %s: %w", e.proto, e.client, e.frontend, e.backend, err)
		}
		if gone {
			ended++
		}
		return nil
	})
	return ended, errors.Join(err, failed)
}
