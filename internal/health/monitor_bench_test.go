// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// directSource hands on what it is given, without a lock.
type directSource struct {
	next    []lb.Change
	started bool
}

func (s *directSource) Dirty() <-chan struct{} { return nil }
func (s *directSource) Since() time.Time       { return time.Time{} }
func (s *directSource) Nudge()                 {}

func (s *directSource) Take() ([]lb.Change, bool) {
	next, full := s.next, !s.started
	s.next, s.started = nil, true
	return next, full
}

// idleProber ends every probe at once.
type idleProber struct{ probes int }

func (p *idleProber) Start(_ Target, done func(Result)) {
	p.probes++
	done(Result{})
}

func (p *idleProber) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

const benchServices, benchBackends = 10_000, 10

func benchService(i int) *lb.Service {
	svc := service(fmt.Sprint("s", i), benchBackends, lb.Health{})
	for j := range svc.Cluster.Backends {
		n := i*benchBackends + j
		svc.Cluster.Backends[j].Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 80)
	}
	return svc
}

// benchFilter returns a Filter of 10,000 Services with 10 backends each, taken once.
func benchFilter(p Prober, d lb.Health) (*Filter, *directSource) {
	src := &directSource{}
	f := NewMonitor(Options{Prober: p, Defaults: d, Log: slog.New(slog.DiscardHandler)}).Filter(src)
	for i := range benchServices {
		src.next = append(src.next, change(benchService(i)))
	}
	f.Take()
	return f, src
}

// BenchmarkChange is one endpoint change among 100,000 backends that are not probed: what
// the Filter adds to it.
func BenchmarkChange(b *testing.B) {
	for _, passive := range []lb.Switch{lb.SwitchOff, lb.SwitchOn} {
		b.Run("passive="+fmt.Sprint(passive == lb.SwitchOn), func(b *testing.B) {
			d := testDefaults()
			d.Passive = passive
			f, src := benchFilter(&idleProber{}, d)
			one := [2][]lb.Change{{change(benchService(777))}, {change(benchService(777))}}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				src.next = one[i&1]
				i++
				if got, _ := f.Take(); len(got) != 1 {
					b.Fatal(len(got))
				}
			}
		})
	}
}

// BenchmarkMemory is what 100,000 backends cost that nobody watches, and that are probed.
func BenchmarkMemory(b *testing.B) {
	for _, kind := range []lb.ProbeKind{lb.ProbeNone, lb.ProbeTCP} {
		b.Run(kind.String(), func(b *testing.B) {
			d := testDefaults()
			d.Probe.Kind = kind
			for b.Loop() {
				var before, after runtime.MemStats
				src := &directSource{}
				for i := range benchServices {
					src.next = append(src.next, change(benchService(i)))
				}
				runtime.GC()
				runtime.ReadMemStats(&before)
				f := NewMonitor(Options{Prober: &idleProber{}, Defaults: d, Log: slog.New(slog.DiscardHandler)}).Filter(src)
				kept, _ := f.Take()
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/benchServices/benchBackends, "B/backend")
				runtime.KeepAlive(kept)
				runtime.KeepAlive(f)
			}
		})
	}
}

// BenchmarkProbe is what the Monitor itself costs for a probe of one of 10,000 targets.
func BenchmarkProbe(b *testing.B) {
	p := &idleProber{}
	d := testDefaults()
	d.Probe.Kind, d.Interval = lb.ProbeTCP, time.Second
	src := &directSource{}
	m := NewMonitor(Options{Prober: p, Defaults: d, Log: slog.New(slog.DiscardHandler)})
	f := m.Filter(src)
	for i := range benchServices / 10 {
		src.next = append(src.next, change(benchService(i)))
	}
	f.Take()
	now := time.Now()
	b.ReportAllocs()
	b.ResetTimer()
	for p.probes < b.N {
		now = now.Add(time.Millisecond)
		m.start(now)
		m.settle(now)
	}
}
