// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// turns are jobs that wait, and who has how many under way. Namespaces take turns.
type turns struct {
	share int              // of the places that one namespace may have
	lines map[string]*line // by namespace
	order []*line          // those in which jobs wait
}

// keptLines is how many lines stay although nobody is in them: they come back soon.
const keptLines = 64

// line is a namespace's part of turns.
type line struct {
	namespace string
	jobs      []job // from next on
	next      int
	places    int // of jobs that are under way
}

func newTurns(limit int) turns {
	return turns{share: max(1, limit*3/4), lines: map[string]*line{}}
}

func (t *turns) push(j job) {
	name := j.t.Service.Namespace
	l := t.lines[name]
	if l == nil {
		l = &line{namespace: name}
		t.lines[name] = l
	}
	if len(l.jobs) == 0 {
		t.order = append(t.order, l)
	}
	if l.next > len(l.jobs)/2 && len(l.jobs) == cap(l.jobs) { // more than half of it is empty
		n := copy(l.jobs, l.jobs[l.next:])
		clear(l.jobs[n:])
		l.jobs, l.next = l.jobs[:n], 0
	}
	j.line = l
	l.jobs = append(l.jobs, j)
}

// pop takes a job whose turn it is and gives its namespace a place.
func (t *turns) pop() (job, bool) {
	for i, l := range t.order {
		if l.places >= t.share {
			continue
		}
		j := l.jobs[l.next]
		l.jobs[l.next] = job{}
		l.next++
		l.places++
		if len(t.order) > 1 {
			t.order = append(append(t.order[:i], t.order[i+1:]...), l)
		}
		if l.next == len(l.jobs) {
			l.jobs, l.next = l.jobs[:0], 0
			t.order = t.order[:len(t.order)-1]
		}
		return j, true
	}
	return job{}, false
}

// ready tells whether pop would find a job.
func (t *turns) ready() bool {
	for _, l := range t.order {
		if l.places < t.share {
			return true
		}
	}
	return false
}

// leave takes back the place of a job.
func (t *turns) leave(j job) {
	l := j.line
	if l.places--; l.places == 0 && len(l.jobs) == 0 && len(t.lines) > keptLines {
		delete(t.lines, l.namespace)
	}
}

// drain takes all jobs.
func (t *turns) drain() []job {
	var all []job
	for _, l := range t.order {
		all = append(all, l.jobs[l.next:]...)
		l.jobs, l.next = nil, 0
	}
	t.order = nil
	return all
}

// places is a bounded number of probes that go on at the same time, a goroutine each.
// Those that wait have none.
type places struct {
	mu    sync.Mutex
	free  int
	turns turns
	ended bool
	wake  chan struct{} // capacity 1
}

func newPlaces(limit int) *places {
	return &places{free: limit, turns: newTurns(limit), wake: make(chan struct{}, 1)}
}

// start lets j wait for a place.
func (p *places) start(j job) {
	p.mu.Lock()
	ended := p.ended
	if !ended {
		p.turns.push(j)
	}
	p.mu.Unlock()
	if ended {
		j.end(errEnded, 0)
		return
	}
	p.look()
}

// look makes run look for jobs.
func (p *places) look() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// next returns a job that has got a place.
func (p *places) next() (job, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free == 0 {
		return job{}, false
	}
	j, ok := p.turns.pop()
	if ok {
		p.free--
	}
	return j, ok
}

func (p *places) leave(j job) {
	p.mu.Lock()
	p.free++
	p.turns.leave(j)
	p.mu.Unlock()
	p.look()
}

// probeFunc probes. It calls done once, and may go on for what it has to clean up.
type probeFunc func(ctx context.Context, t Target, done func(error))

// run lets jobs have places until ctx ends.
func (p *places) run(ctx context.Context, probe probeFunc) error {
	var all sync.WaitGroup
	for ctx.Err() == nil {
		j, ok := p.next()
		if !ok {
			select {
			case <-ctx.Done():
			case <-p.wake:
			}
			continue
		}
		all.Go(func() {
			defer p.leave(j)
			j.run(ctx, probe)
		})
	}
	p.mu.Lock()
	p.ended = true
	rest := p.turns.drain()
	p.mu.Unlock()
	for _, j := range rest {
		j.end(errEnded, 0)
	}
	all.Wait()
	return nil
}

// way is how far a probe has come.
type way struct {
	begun atomic.Bool // to connect
	made  atomic.Bool // a connection
}

// wayKey has the *way of a probe in its context.
type wayKey struct{}

// wayOf returns the way of the probe whose context ctx comes from.
func wayOf(ctx context.Context) *way {
	if w, ok := ctx.Value(wayKey{}).(*way); ok {
		return w
	}
	return &way{} // nobody's
}

// run probes, at most for the time that the probe has.
func (j job) run(ctx context.Context, probe probeFunc) {
	limited, cancel := context.WithTimeout(ctx, j.t.Probe.Timeout)
	defer cancel()
	var w way
	limited = context.WithValue(limited, wayKey{}, &w)
	start := time.Now()
	probe(limited, j.t, func(err error) {
		took := time.Since(start)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			err = errEnded
		case limited.Err() != nil: // whatever it says: it did not come in time
			err = context.DeadlineExceeded
			if w.begun.Load() && !w.made.Load() {
				err = fmt.Errorf("%w: %w", ErrUnreached, err)
			}
		}
		j.end(err, took)
	})
}
