// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"sync"
	"time"
)

// turns are jobs that wait, and who has how many under way. Namespaces take turns.
type turns struct {
	share  int // of the places that one namespace may have
	lines  map[string][]job
	order  []string // namespaces with a line
	places map[string]int
}

func newTurns(limit int) turns {
	return turns{share: max(1, limit*3/4), lines: map[string][]job{}, places: map[string]int{}}
}

func (t *turns) push(j job) {
	name := j.t.Service.Namespace
	if len(t.lines[name]) == 0 {
		t.order = append(t.order, name)
	}
	t.lines[name] = append(t.lines[name], j)
}

// pop takes a job whose turn it is and gives its namespace a place.
func (t *turns) pop() (job, bool) {
	for i, name := range t.order {
		if t.places[name] >= t.share {
			continue
		}
		line := t.lines[name]
		j := line[0]
		line[0] = job{}
		t.order = append(t.order[:i], t.order[i+1:]...)
		if len(line) > 1 {
			t.lines[name] = line[1:]
			t.order = append(t.order, name)
		} else {
			delete(t.lines, name)
		}
		t.places[name]++
		return j, true
	}
	return job{}, false
}

// leave takes back the place of a job.
func (t *turns) leave(j job) {
	name := j.t.Service.Namespace
	if t.places[name]--; t.places[name] == 0 {
		delete(t.places, name)
	}
}

// drain takes all jobs.
func (t *turns) drain() []job {
	var all []job
	for _, name := range t.order {
		all = append(all, t.lines[name]...)
	}
	clear(t.lines)
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

// run probes, at most for the time that the probe has.
func (j job) run(ctx context.Context, probe probeFunc) {
	limited, cancel := context.WithTimeout(ctx, j.t.Probe.Timeout)
	defer cancel()
	start := time.Now()
	probe(limited, j.t, func(err error) {
		took := time.Since(start)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			err = errEnded
		case limited.Err() != nil: // whatever it says: it did not come in time
			err = context.DeadlineExceeded
		}
		j.end(err, took)
	})
}

// ready tells whether pop would find a job.
func (t *turns) ready() bool {
	for _, name := range t.order {
		if t.places[name] < t.share {
			return true
		}
	}
	return false
}
