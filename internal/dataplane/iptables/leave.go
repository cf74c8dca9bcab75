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

// keepChain is what Leave leaves for as long as it waits, and a jump to it as the last
// rule of POSTROUTING. Netfilter follows connections, and so translates those that it
// knows, only as long as some rule of the network namespace asks for their state; the
// first one does. An iptables dataplane that starts meanwhile lets it be: see EndKeep.
//
// To a connection of the node itself that has the same port and backend as one that was
// masqueraded, netfilter gives another port, of all from 1024 on where no rule says
// which. With those the eBPF dataplane masquerades, and its clients would get the answers.
// The other rules say: one of those that sockets of the node get by themselves.
const keepChain = "LBP-KEEP"

func keepRules() []string {
	rules := []string{"-m conntrack --ctstate DNAT"}
	if ports := localPorts(); ports != (portSpan{}) {
		for _, proto := range []string{"tcp", "udp", "sctp"} {
			rules = append(rules, fmt.Sprintf("-p %s --sport %d:%d -m addrtype --src-type LOCAL -j SNAT --to-source :%d-%d",
				proto, ports.first, ports.last, ports.first, ports.last))
		}
	}
	return rules
}

// translatedPeriod is the time between two looks for connections that netfilter
// translates.
const translatedPeriod = 10 * time.Second

// Leave removes what an earlier agent left, while another dataplane serves this node and
// the caller holds Lock. TCP and SCTP connections go on: netfilter translates those that
// it knows without rules for them. UDP flows to frontends end, so that their next packets
// come to the other dataplane; frontends is called if there was something to remove. When
// told has been called, only keepChain is left, and the jump to it; Leave returns when there is no connection
// to a frontend any more that needs it, or when ctx is done. Then the next Leave goes on.
func Leave(ctx context.Context, opts Options, frontends func() []lb.FrontendKey, told func()) error {
	found, err := LeaveRules(ctx)
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

// LeaveRules is the part of Leave that ends at once: it removes everything but keepChain,
// and tells whether there was something.
func LeaveRules(ctx context.Context) (found bool, err error) {
	err = eachNAT(func(r *runner, have func(table) bool) error {
		is, err := r.leave(ctx, have(filterTable))
		found = found || is
		return err
	})
	if err == nil && found {
		_, err = cleanupSets()
	}
	return found, err
}

// leave is LeaveRules for one family and backend.
func (r *runner) leave(ctx context.Context, filter bool) (found bool, err error) {
	chains, err := r.chains(ctx, natTable)
	if err != nil || len(chains) == 0 {
		return false, err
	}
	if err := r.keep(ctx); err != nil {
		return true, err
	}
	if filter {
		if _, err := r.removeAll(ctx, filterTable); err != nil {
			return true, err
		}
	}
	if err := r.dropOthers(ctx); err != nil {
		return true, err
	}
	delete(chains, keepChain)
	return true, r.restore(ctx, change{natTable: {del: slices.Sorted(maps.Keys(chains))}})
}

// keptAt is where the jump to keepChain is.
const keptAt, keepJump = "POSTROUTING", "-j " + keepChain

// keep makes keepChain, and the jump to it.
func (r *runner) keep(ctx context.Context) error {
	if err := r.restore(ctx, change{natTable: {put: []chain{{keepChain, keepRules()}}}}); err != nil {
		return err
	}
	have, err := r.ours(hook{natTable, keptAt})
	if err != nil || slices.Contains(have, keepJump) {
		return err
	}
	return r.edit(ctx, map[table][]string{natTable: {"-A " + keptAt + " " + keepJump}})
}

// dropOthers removes all jumps of table nat but that to keepChain.
func (r *runner) dropOthers(ctx context.Context) error {
	var lines []string
	for _, h := range natTable.builtins() {
		have, err := r.ours(h)
		if err != nil {
			return err
		}
		for _, rule := range withoutKept(have) {
			lines = append(lines, "-D "+h.builtin+" "+rule)
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return r.edit(ctx, map[table][]string{natTable: lines})
}

func withoutKept(rules []string) []string {
	return slices.DeleteFunc(slices.Clone(rules), func(rule string) bool { return rule == keepJump })
}

// endKeep removes keepChain, and the jump to it.
func (r *runner) endKeep(ctx context.Context) error {
	chains, err := r.chains(ctx, natTable)
	if _, kept := chains[keepChain]; err != nil || !kept {
		return err
	}
	have, err := r.ours(hook{natTable, keptAt})
	if err != nil {
		return err
	}
	if slices.Contains(have, keepJump) {
		if err := r.edit(ctx, map[table][]string{natTable: {"-D " + keptAt + " " + keepJump}}); err != nil {
			return err
		}
	}
	return r.restore(ctx, change{natTable: {del: []string{keepChain}}})
}

// Keep makes what Leave will leave, if an earlier agent left something, or kube-proxy has
// rules here, which may go: so it is there before the other dataplane has connections.
func Keep(ctx context.Context) error {
	err := eachNAT(func(r *runner, _ func(table) bool) error {
		found, err := r.translates(ctx)
		if err != nil || !found {
			return err
		}
		return r.keep(ctx)
	})
	return errors.Join(err, keepBeside(ctx))
}

// EndKeep removes what Leave left, when the other dataplane has no connections any more.
func EndKeep(ctx context.Context) error {
	return eachNAT(func(r *runner, _ func(table) bool) error { return r.endKeep(ctx) })
}

// eachNAT calls do for both families and backends that have a table nat; have tells which
// tables there are.
func eachNAT(do func(r *runner, have func(table) bool) error) error {
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
			if err := do(r, have); err != nil {
				return fmt.Errorf("%s, %s backend: %w", f, backend, err)
			}
		}
	}
	return nil
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
