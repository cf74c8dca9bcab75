// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/bench/internal/node"
	"github.com/lbproxy/lbproxy/bench/internal/observe"
)

// site is a program that runs and is being measured.
type site struct {
	arm
	place   *place
	detect  detector
	rng     *rand.Rand
	lone    []float64 // ms, of each change that was made alone
	results map[string]value
}

// value is one number of the report.
type value struct {
	Of   float64 `json:"value"`
	Unit string  `json:"unit"`
	N    int     `json:"n,omitempty"`    // of how many it is a quantile
	More bool    `json:"more,omitempty"` // it was more than that: the wait was over
}

// The rows of the report.
const (
	rowStart    = "process start to programmed"
	rowCold     = "last object sent to programmed"
	rowPeak     = "memory: peak of the start"
	rowP50      = "one change p50"
	rowP99      = "one change p99"
	rowMax      = "one change, longest"
	rowStormP50 = "%d changes/s p50"
	rowStormP99 = "%d changes/s p99"
	rowStormCPU = "%d changes/s, of one core"
	rowRSS      = "memory: settled (VmRSS)"
	rowAnon     = "memory: of that not shared (RssAnon)"
	rowRestart  = "restart: process start to programmed"
	rowWrites   = "restart: writes to kernel tables"

	rowStaleP50 = "endpoint removed to its UDP sockets destroyed p50"
	rowStaleP99 = "endpoint removed to its UDP sockets destroyed p99"
	rowStaleMax = "endpoint removed to its UDP sockets destroyed, longest"
)

func (s *site) set(row string, of float64, unit string, n int) {
	s.results[row] = value{Of: of, Unit: unit, N: n}
}

func newSite(a arm, p *place) *site {
	return &site{arm: a, place: p, rng: rand.New(rand.NewPCG(1, 2)), results: map[string]value{}}
}

// cold starts a program in a place of its own and notes how long that took.
func cold(ctx context.Context, a arm, w *world, limit time.Duration) (_ *site, err error) {
	p, err := newPlace(w)
	if err != nil {
		return nil, err
	}
	s := newSite(a, p)
	defer func() {
		if err != nil {
			_ = s.close()
		}
	}()
	programmed, err := a.launch(ctx, p, limit)
	if err != nil {
		return nil, err
	}
	listed := w.api.Listed()
	s.set(rowStart, programmed.Sub(p.Began).Seconds(), "s", 0)
	s.set(rowCold, programmed.Sub(listed).Seconds(), "s", 0)
	peak, err := observe.Memory(p.PID(), "status", "VmHWM")
	if err != nil {
		return nil, p.Explain(err)
	}
	s.set(rowPeak, peak, "MB", 0)
	s.detect, err = a.detector(p)
	return s, err
}

func (s *site) close() error {
	if s.detect != nil {
		_ = s.detect.close() // the kernel's objects go with the place
	}
	return s.place.Close()
}

// change writes one change of Service i and returns when it began to.
func (s *site) change(i int) (netip.Addr, time.Time, error) {
	w := s.place.world
	sl, addr := w.change(i, s.rng.IntN(len(w.slices[i])))
	s.detect.expect(i, addr)
	at, err := w.api.Put(sl)
	return addr, at, err
}

// alone makes n changes, each when the one before has arrived, for at most limit.
func (s *site) alone(ctx context.Context, n int, limit time.Duration) error {
	for end := time.Now().Add(limit); n > 0 && time.Now().Before(end); n-- {
		if err := node.Sleep(ctx, s.pause); err != nil {
			return err
		}
		addr, begin, err := s.change(s.rng.IntN(s.place.world.services))
		if err != nil {
			return err
		}
		for {
			got, err := s.detect.arrived()
			if err != nil {
				return err
			}
			if at, ok := got[addr]; ok {
				s.lone = append(s.lone, ms(at.Sub(begin)))
				break
			}
			if time.Since(begin) > patience {
				return s.place.Explain(fmt.Errorf("the change to %s did not arrive within %s", addr, patience))
			}
			nap(s.detect.pause())
		}
	}
	return nil
}

// nap sleeps for d and 10 us more, where time.Sleep would take 100. The thread must
// be locked, see precise.
func nap(d time.Duration) {
	ts := unix.NsecToTimespec(d.Nanoseconds())
	_ = unix.Nanosleep(&ts, nil) // an interruption only makes it shorter
}

// precise makes the calling goroutine's thread its own, with timers that are not
// late by the 50 us that the kernel allows itself.
func precise() error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("timer slack: %w", err)
	}
	return nil
}

// summarize notes what alone measured.
func (s *site) summarize() {
	sorted := slices.Sorted(slices.Values(s.lone))
	if n := len(sorted); n > 0 {
		s.set(rowP50, quantile(sorted, 0.5), "ms", n)
		s.set(rowP99, quantile(sorted, 0.99), "ms", n)
		s.set(rowMax, sorted[n-1], "ms", n)
	}
}

// patience is how long a change is waited for: one alone, and those of a storm from
// its end on.
const patience = 30 * time.Second

// storm makes rate changes per second for so long, of one Service after the other,
// and waits for the last of them.
func (s *site) storm(ctx context.Context, rate int, long time.Duration) error {
	cpu, err := observe.CPU(s.place.Lab)
	if err != nil {
		return err
	}
	var took []float64
	pending := map[netip.Addr]time.Time{}
	begin := time.Now()
	total := int(long.Seconds() * float64(rate))
	for made := 0; made < total || len(pending) > 0; {
		for ; made < total && time.Since(begin) >= time.Duration(made)*time.Second/time.Duration(rate); made++ {
			addr, at, err := s.change(made % s.place.world.services)
			if err != nil {
				return err
			}
			pending[addr] = at
		}
		got, err := s.detect.arrived()
		if err != nil {
			return err
		}
		for addr, at := range got {
			took = append(took, ms(at.Sub(pending[addr])))
			delete(pending, addr)
		}
		if time.Since(begin) > long+patience {
			break
		}
		if err := node.Sleep(ctx, 200*time.Microsecond); err != nil {
			return err
		}
	}
	elapsed := time.Since(begin).Seconds()
	after, err := observe.CPU(s.place.Lab)
	if err != nil {
		return err
	}
	for _, at := range pending {
		took = append(took, ms(time.Since(at)))
	}
	slices.Sort(took)
	for row, q := range map[string]float64{rowStormP50: 0.5, rowStormP99: 0.99} {
		v := value{Of: quantile(took, q), Unit: "ms", N: len(took)}
		v.More = float64(len(pending)) > (1-q)*float64(len(took))
		s.results[fmt.Sprintf(row, rate)] = v
	}
	s.set(fmt.Sprintf(rowStormCPU, rate), 100*(after-cpu)/elapsed, "%", 0)
	return nil
}

// memory notes how much memory the program has when nothing has happened for a
// while.
func (s *site) memory(ctx context.Context, settle time.Duration) error {
	if err := node.Sleep(ctx, settle); err != nil {
		return err
	}
	for row, field := range map[string]string{rowRSS: "VmRSS", rowAnon: "RssAnon"} {
		mb, err := observe.Memory(s.place.PID(), "status", field)
		if err != nil {
			return s.place.Explain(err)
		}
		s.set(row, mb, "MB", 0)
	}
	return nil
}

// reclaimed is when lbproxy has freed backends that left without connections.
const reclaimed = 6 * time.Second

// restart kills lbproxy when it has nothing to do, and starts it over what it left
// in the kernel.
func (s *site) restart(ctx context.Context, limit time.Duration) error {
	if err := node.Sleep(ctx, reclaimed); err != nil {
		return err
	}
	s.place.Kill()
	programmed, err := s.launch(ctx, s.place, limit)
	if err != nil {
		return err
	}
	s.set(rowRestart, programmed.Sub(s.place.Began).Seconds(), "s", 0)
	if s.place.world.huge() {
		return nil // a scrape would be of more than a million numbers
	}
	m, err := s.place.Metrics()
	if err != nil {
		return err
	}
	writes, ok := m["lbproxy_dataplane_writes_total"]
	if !ok {
		return fmt.Errorf("lbproxy has no metric lbproxy_dataplane_writes_total; it has %d others", len(m))
	}
	s.set(rowWrites, writes, "", 0)
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// quantile of sorted numbers: the smallest that q of them do not exceed.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	rank := math.Ceil(q*float64(len(sorted)) - 1e-9) // q is not exact
	return sorted[max(int(rank), 1)-1]
}
