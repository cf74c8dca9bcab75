// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/bench/internal/node"
)

// Places without a proxy, where endpoints are dialed instead of Services. In one of them
// netfilter tracks connections, as it does wherever there is table nat.
const (
	bareName    = "no proxy"
	trackedName = "no proxy, tracked"
)

// rivals are what is measured beside each other: first what writes rules, and then, in a
// full run, what does not.
func rivals(lbproxy, kubeProxy string, quick bool) []arm {
	const short, long = 15 * time.Millisecond, 1100 * time.Millisecond
	own := func(name, backend string) arm {
		return arm{node.Proxy{Path: lbproxy, Dataplane: ruled, Backend: backend}, name, short}
	}
	other := func(name, backend, minSync string, pause time.Duration) arm {
		return arm{node.Proxy{Path: kubeProxy, Mode: ruled, Backend: backend, MinSync: minSync, Aided: backend == node.NFT}, name, pause}
	}
	all := []arm{
		own("lbproxy iptables-nft", node.NFT), other("iptables-nft 0s", node.NFT, "0s", short),
		own("lbproxy iptables-legacy", node.Legacy), other("iptables-legacy 0s", node.Legacy, "0s", short),
	}
	if !quick {
		all = append(all,
			other("iptables-nft 1s", node.NFT, "1s", long), other("iptables-legacy 1s", node.Legacy, "1s", long),
			arm{node.Proxy{Path: lbproxy, Dataplane: "ebpf"}, "lbproxy", short},
			arm{node.Proxy{Path: kubeProxy, Mode: "nftables", MinSync: "1s"}, "nftables 1s", long})
	}
	return all
}

// contest is a run of all rivals beside each other, each in a place of its own, with an
// API server of its own.
type contest struct {
	*bench
	arms  []arm
	sites map[string]*site // the bare place has one too
	dials map[string]*dialer
	rows  []*series
	stuck map[string]bool // arms whose changes are not waited for any more
}

// beside lets the rivals take turns, so that what else this machine does meets all: at
// starting, at changes made alone, and at first packets.
func (b *bench) beside(ctx context.Context, arms []arm) (err error) {
	c := &contest{bench: b, arms: arms, sites: map[string]*site{}, dials: map[string]*dialer{}, stuck: map[string]bool{}}
	if len(arms) == 0 {
		return nil
	}
	defer func() {
		for name := range c.sites {
			err = errors.Join(err, c.leave(name))
		}
		b.report.Beside = c.rows
	}()
	for round := range b.starts {
		for _, a := range c.turn(round) {
			last := round == b.starts-1
			if !last && a.MinSync != "" && a.MinSync != "0s" {
				continue // a start does not depend on it
			}
			if err := c.start(ctx, a, last); err != nil {
				return err
			}
		}
	}
	if err := c.bare(ctx); err != nil {
		return err
	}
	for block := range b.blocks {
		runtime.GC()
		for _, a := range c.turn(block) {
			if err := c.change(ctx, a); err != nil {
				return err
			}
		}
	}
	for range b.blocks {
		runtime.GC()
		if err := undisturbed(c.first); err != nil {
			return err
		}
	}
	return nil
}

// undisturbed calls f without the signals by which Go's scheduler interrupts a thread:
// a system call would end early.
func undisturbed(f func() error) error {
	var old unix.Sigset_t
	set := unix.Sigset_t{Val: [16]uint64{1 << (unix.SIGURG - 1)}}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, &old); err != nil {
		return fmt.Errorf("signals: %w", err)
	}
	return errors.Join(f(), unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil))
}

// turn is the order of the arms that are there, or were not tried yet, in a block.
func (c *contest) turn(block int) []arm {
	k := block % max(1, len(c.arms))
	return slices.Concat(c.arms[k:], c.arms[:k])
}

// drop gives an arm up that failed.
func (c *contest) drop(ctx context.Context, a arm, err error) error {
	c.arms = slices.DeleteFunc(slices.Clone(c.arms), func(other arm) bool { return other.name == a.name })
	w := &world{scale: c.compare}
	return errors.Join(c.leave(a.name), c.failed(ctx, a, w, err))
}

func (c *contest) leave(name string) error {
	var errs []error
	if d := c.dials[name]; d != nil {
		errs = append(errs, d.close())
	}
	if s := c.sites[name]; s != nil {
		errs = append(errs, s.close())
	}
	delete(c.dials, name)
	delete(c.sites, name)
	return errors.Join(errs...)
}

// row is the series of an arm.
func (c *contest) row(arm, row, unit string) *series {
	for _, s := range c.rows {
		if s.Arm == arm && s.Row == row {
			return s
		}
	}
	s := &series{Arm: arm, Row: row, Unit: unit}
	c.rows = append(c.rows, s)
	return s
}

// start starts an arm, and ends it again if it is not to stay.
func (c *contest) start(ctx context.Context, a arm, stay bool) error {
	runtime.GC()
	w, err := newWorld(c.compare, true)
	if err != nil {
		return err
	}
	s, err := cold(ctx, a, w, c.cold)
	if err != nil {
		return c.drop(ctx, a, err)
	}
	c.sites[a.name] = s
	c.log("beside: %s: started in %.2f s", a.name, s.results[rowStart].Of)
	c.row(a.name, rowCold, "s").add([]float64{s.results[rowCold].Of})
	if !stay {
		if err := c.leave(a.name); err != nil {
			return err
		}
	} else if c.dials[a.name], err = newDialer(s.place, false); err != nil {
		return c.drop(ctx, a, err)
	}
	return node.Sleep(ctx, c.settle) // the kernel cleans up after what ended
}

// bare makes the places without a proxy.
func (c *contest) bare(ctx context.Context) error {
	for _, name := range []string{bareName, trackedName} {
		w, err := newWorld(c.compare, true)
		if err != nil {
			return err
		}
		p, err := newPlace(w)
		if err != nil {
			return err
		}
		c.sites[name] = newSite(arm{name: name}, p)
		if name == trackedName {
			if err := p.track(ctx); err != nil {
				return err
			}
		}
		if c.dials[name], err = newDialer(p, true); err != nil {
			return err
		}
	}
	return nil
}

// change measures one block of changes of one arm.
func (c *contest) change(ctx context.Context, a arm) error {
	s := c.sites[a.name]
	if s == nil || c.stuck[a.name] {
		return nil
	}
	s.lone = nil
	err := s.alone(ctx, c.changes/c.blocks, c.budget/time.Duration(c.blocks))
	c.row(a.name, rowP50, "ms").add(s.lone)
	c.stuck[a.name] = err != nil // what it programmed before is there still
	return c.failed(ctx, a, s.place.world, err)
}

// first measures one block of first packets of all arms, in an order that changes with
// each packet.
func (c *contest) first() error {
	names := []string{bareName, trackedName}
	for _, a := range c.arms {
		names = append(names, a.name)
	}
	order := rand.New(rand.NewPCG(5, 6))
	for _, x := range exchanges {
		took, fds := map[string][]float64{}, map[string][]int{}
		for _, name := range names {
			var err error
			if fds[name], err = c.dials[name].sockets(x, c.firsts); err != nil {
				return errors.Join(err, closeAll(fds))
			}
		}
		for range c.firsts {
			order.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
			for _, name := range names {
				fd := fds[name][0]
				fds[name] = fds[name][1:]
				us, err := c.dials[name].exchange(x, fd)
				if err != nil {
					return errors.Join(fmt.Errorf("%s: %w", name, err), closeAll(fds))
				}
				took[name] = append(took[name], us)
			}
		}
		for _, name := range names {
			c.row(name, x.row, "us").add(took[name])
		}
	}
	return nil
}

func closeAll(fds map[string][]int) error {
	var errs []error
	for _, list := range fds {
		for _, fd := range list {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// chooseRivals keeps the rivals whose names match, if the scale is one of those that are
// measured.
func (b *bench) chooseRivals(all []arm, name, scale *regexp.Regexp) []arm {
	if !scale.MatchString(b.compare.String()) {
		return nil
	}
	return slices.DeleteFunc(all, func(a arm) bool { return !name.MatchString(a.name) })
}
