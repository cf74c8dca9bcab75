// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// Looks are at least lookPeriod apart, and take at most one part in lookShare of one
// processor's time, of which lookSaved can be saved up: some looks may follow each other.
// The processor's, as on a busy machine a look takes long, and the next one must not wait
// for that. A table that has lost half of its rules is looked at at once.
const (
	lookPeriod = 250 * time.Millisecond
	lookShare  = 20
	lookSaved  = time.Second
)

// watcher notices that somebody else changed the tables. It asks for numbers that every
// change moves, which costs a system call or a few; only when they moved otherwise than
// by lbproxy's own changes it looks at the jumps, and at how many rules chains have. Its
// methods may be called from any goroutine, check on a thread in the network namespace.
type watcher struct {
	now   func() time.Time
	spent func() time.Duration // time of the processor, of the calling thread and of programs that it ran

	mu       sync.Mutex
	families []*watched
}

// watched is one family.
type watched struct {
	*runner
	nft      *nft    // nil: the backend is legacy
	legacy   *legacy // nil: the backend is nft
	seen     state   // when all was well
	known    bool    // seen is valid
	pending  bool    // a look is due
	next     time.Time
	saved    time.Duration // that looks may take, at refilled
	cost     time.Duration // of the last look
	refilled time.Time
}

// state is what the cheap numbers were.
type state struct {
	generation, commits uint32
	tables              [2]tableInfo
}

// lost tells whether a table has less than half of the rules that it had. Nftables does
// not say how many there are.
func (s *state) lost(before state) bool {
	for i := range s.tables {
		if 2*s.tables[i].entries < before.tables[i].entries {
			return true
		}
	}
	return false
}

// newWatcher watches the tables of runners in the network namespace of the calling thread.
func newWatcher(rs []*runner) (_ *watcher, err error) {
	w := &watcher{now: time.Now, spent: processorTime}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	for _, r := range rs {
		f := &watched{runner: r}
		if r.kind == nftBackend {
			f.nft, err = openNFT()
		} else {
			f.legacy, err = openLegacy(r.family)
		}
		if err != nil {
			return nil, fmt.Errorf("watch the tables of %s: %w", r.family, err)
		}
		w.families = append(w.families, f)
	}
	return w, nil
}

func (w *watcher) close() error {
	var errs []error
	for _, f := range w.families {
		if f.nft != nil {
			errs = append(errs, f.nft.close())
		}
		if f.legacy != nil {
			errs = append(errs, f.legacy.close())
		}
	}
	return errors.Join(errs...)
}

// wrote is called after each restore of a family. Nftables counts transactions, so that
// there is nothing to do; the legacy backend tells the size of a table only.
func (w *watcher) wrote(family lb.Family) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.families {
		if f.family != family || f.legacy == nil || !f.known {
			continue
		}
		now, err := f.read(0)
		for i := range now.tables {
			if err != nil || now.tables[i].builtins() != f.seen.tables[i].builtins() {
				f.known = false // not by our chains
			}
		}
		f.seen = now
	}
}

// forget makes the next check look at everything.
func (w *watcher) forget(family lb.Family) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.families {
		if f.family == family {
			f.known = false
		}
	}
}

// damage is what somebody else did to one family.
type damage struct {
	family lb.Family
	jumps  []jump     // that are gone
	chains []chainKey // that have fewer rules than they should, or others
	whys   []string
}

// mostWhys is how many of them are told.
const mostWhys = 10

func (d *damage) String() string {
	whys := d.whys[:min(len(d.whys), mostWhys)]
	text := d.family.String() + ": " + strings.Join(whys, "; ")
	if rest := len(d.whys) - len(whys); rest > 0 {
		text += fmt.Sprintf("; and %d more", rest)
	}
	return text
}

// check returns what was damaged of jumps and chains, by family. It is cheap when nobody
// else changed the tables, and may be called several times a second.
func (w *watcher) check(ctx context.Context) (damaged []*damage, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	commits := uint32(0) // of both families, which the kernel counts together
	for _, f := range w.families {
		if !f.changing.TryLock() {
			return nil, nil // a change of ours is being made
		}
		defer f.changing.Unlock()
		f.mu.Lock()
		commits += f.commits
		f.mu.Unlock()
	}
	var errs []error
	for _, f := range w.families {
		found, err := f.check(ctx, commits, w)
		if err != nil {
			errs = append(errs, fmt.Errorf("watch the tables of %s: %w", f.family, err))
		}
		if found != nil {
			damaged = append(damaged, found)
		}
	}
	return damaged, errors.Join(errs...)
}

// check is watcher.check of one family. No change of ours is being made meanwhile.
func (f *watched) check(ctx context.Context, commits uint32, w *watcher) (found *damage, err error) {
	st, err := f.read(commits)
	if err != nil {
		return nil, err
	}
	if !f.known || f.seen.tables != st.tables || f.seen.generation-f.seen.commits != st.generation-st.commits {
		f.pending = true
	}
	now := w.now()
	f.saved = min(f.saved+now.Sub(f.refilled)/lookShare, lookSaved)
	f.refilled = now
	late := now.Before(f.next) || f.saved < min(f.cost, lookSaved)
	lost := f.known && st.lost(f.seen)
	f.seen, f.known = st, true
	if !f.pending || late && !lost {
		return nil, nil
	}
	before := w.spent()
	found, err = f.look(ctx)
	f.cost = w.spent() - before
	f.saved -= f.cost
	f.next = w.now().Add(lookPeriod)
	f.pending = err != nil || found != nil
	return found, err
}

// read returns the numbers; commits is how many transactions were ours.
func (f *watched) read(commits uint32) (st state, err error) {
	if f.nft != nil {
		st.generation, err = f.nft.generation()
		st.commits = commits
		return st, err
	}
	for i, t := range tables {
		if st.tables[i], err = f.legacy.info(t); err != nil {
			return st, err
		}
	}
	return st, nil
}

// sighting is what was seen of a table.
type sighting struct {
	jumps map[jumpKey]bool
	rules map[string]int // of chains of which it is known
	uses  map[string]int // of others: their rules and those that lead to them
}

// jumpKey is a jump without what it matches.
type jumpKey struct{ builtin, chain string }

// look returns what is wrong with the jumps and the chains; nil: nothing.
func (f *watched) look(ctx context.Context) (*damage, error) {
	found := &damage{family: f.family}
	var uses map[table]map[string]int
	var failed error // what is seen without it is damaged all the same
	if f.nft != nil {
		uses, failed = f.nft.uses(f.family)
	}
	for _, t := range tables {
		var err error
		var s sighting
		if f.nft != nil {
			s, err = f.lookNFT(t)
		} else {
			s, err = f.lookLegacy(ctx, t)
		}
		if err != nil {
			return nil, err
		}
		s.uses = uses[t]
		f.compare(t, s, found)
	}
	if len(found.whys) == 0 {
		return nil, failed
	}
	return found, failed
}

// compare adds to found how what was seen differs from what was put. With nftables, a chain
// that has lost its rules takes those along that they led to: they seem to have fewer.
func (f *watched) compare(t table, s sighting, found *damage) {
	for _, j := range jumps {
		if j.table == t && !s.jumps[jumpKey{j.builtin, j.chain}] {
			found.jumps = append(found.jumps, j)
			found.whys = append(found.whys, fmt.Sprintf("the jump from %s to %s in table %s is gone", j.builtin, j.chain, t))
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	put := f.counts[t]
	for name := range constantChains[t] {
		if _, ok := put.rules[name]; !ok && s.rules[name] > 0 {
			put.rules[name] = s.rules[name] // an earlier agent's
		}
	}
	for _, name := range slices.Sorted(maps.Keys(put.rules)) {
		want, have := put.rules[name], s.rules[name]
		if f.nft != nil && !constantChains[t][name] {
			if s.uses == nil {
				continue // it is not known
			}
			have = s.uses[name] - put.led[name]
			have = min(have, want) // more may lead to it: that is others' business
		}
		if have != want {
			found.chains = append(found.chains, chainKey{f.family, t, name})
			found.whys = append(found.whys, fmt.Sprintf("chain %s of table %s has %d rules: want %d", name, t, max(have, 0), want))
		}
	}
}

// lookNFT asks the kernel for the rules of the few chains that all packets meet.
func (f *watched) lookNFT(t table) (sighting, error) {
	s := sighting{jumps: map[jumpKey]bool{}, rules: map[string]int{}}
	for _, h := range hooks() {
		if h.table != t {
			continue
		}
		err := f.nft.rules(f.family, t, h.builtin, func(rule []byte) {
			for _, j := range h.wanted() {
				if leadsTo(rule, j.chain) {
					s.jumps[jumpKey{h.builtin, j.chain}] = true
				}
			}
		})
		if err != nil {
			return s, err
		}
	}
	for name := range constantChains[t] {
		err := f.nft.rules(f.family, t, name, func([]byte) { s.rules[name]++ })
		if err != nil {
			return s, err
		}
	}
	return s, nil
}

// lookLegacy reads the whole table: the kernel gives no less.
func (f *watched) lookLegacy(ctx context.Context, t table) (sighting, error) {
	s := sighting{jumps: map[jumpKey]bool{}, rules: map[string]int{}}
	err := f.save(ctx, t, func(line string) {
		name, rules, ok := parseSaved(line)
		if !ok || rules == nil {
			return
		}
		if strings.HasPrefix(name, prefix) {
			s.rules[name]++
		} else if leadsToOurs(rules[0]) {
			s.jumps[jumpKey{name, target(rules[0])}] = true
		}
	})
	return s, err
}
