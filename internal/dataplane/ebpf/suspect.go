// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// symptomsWaiting is how many symptoms wait for whoever takes them; others are lost.
const symptomsWaiting = 1024

// suspicion is what the agent does about symptoms.
type suspicion struct {
	since    time.Duration // when Open was called, monotonic: what is older is no news
	symptoms chan lb.Symptom
	lost     atomic.Uint64 // those that nobody took
}

func newSuspicion() suspicion {
	return suspicion{since: monotonic(), symptoms: make(chan lb.Symptom, symptomsWaiting)}
}

// Symptoms implements dataplane.Witness.
func (d *Dataplane) Symptoms() <-chan lb.Symptom { return d.suspicion.symptoms }

// Suspect implements dataplane.Witness. Only Services whose Terms.Suspect is not 0 heed it.
func (d *Dataplane) Suspect(name lb.ServiceName, backend netip.AddrPort, until time.Time, calm time.Duration) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	svc := d.services[name]
	if svc == nil {
		return nil
	}
	now := monotonic()
	for sc, ids := range svc.ids {
		i := slices.IndexFunc(ids, func(id uint32) bool { return d.maps.isAt(id, backend) })
		if i < 0 {
			continue
		}
		s := &d.maps.suspects[ids[i]]
		d.maps.wrote()
		atomic.StoreUint64(&s.Calm, after(now, calm)) // first: the kernel would suspect it again
		atomic.StoreUint64(&s.Until, after(now, time.Until(until)))
		if sc == 0 { // the other pool has the same element, if it has the backend
			break
		}
	}
	return nil
}

// after returns when d has passed, in ns of the monotonic clock; 0 if it has by now.
func after(now, d time.Duration) uint64 {
	if d <= 0 {
		return 0
	}
	if d > math.MaxInt64-now {
		return math.MaxInt64
	}
	return uint64(now + d)
}

// suspectMillis is what struct service says of a Service's suspicion.
func suspectMillis(svc *dataplane.Service) uint32 {
	if svc.Name.Proto != lb.TCP || svc.Terms.Suspect <= 0 {
		return 0
	}
	ms := (svc.Terms.Suspect + time.Millisecond - 1) / time.Millisecond
	return uint32(min(ms, math.MaxUint32))
}

// suspectFor returns for how much longer new connections avoid a backend; 0: they do not.
func (m *maps) suspectFor(id uint32) time.Duration {
	until := time.Duration(atomic.LoadUint64(&m.suspects[id].Until))
	if m.services[m.backends[id].Service].Suspect == 0 {
		return 0
	}
	return max(0, until-monotonic())
}

// readSymptoms hands on what the kernel tells, until ctx is done.
func (d *Dataplane) readSymptoms(ctx context.Context) error {
	r, err := ringbuf.NewReader(d.maps.byName[lbMapSymptoms])
	if err != nil {
		return fmt.Errorf("read map %s: %w", lbMapSymptoms, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = r.Close() }) // ends Read
	defer func() {
		if stop() {
			_ = r.Close() // an error would say that it is closed
		}
	}()
	for {
		rec, err := r.Read()
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read map %s: %w", lbMapSymptoms, err)
		}
		var told lbSymptom
		if _, err := binary.Decode(rec.RawSample, binary.NativeEndian, &told); err != nil {
			return fmt.Errorf("read map %s: %w", lbMapSymptoms, err)
		}
		if s, ok := d.symptomOf(told); ok {
			d.suspicion.tell(s)
		}
	}
}

// symptomOf finds out whom the kernel speaks of. It is nobody if the backend is not there
// any more, or if an earlier agent was told, too late.
func (d *Dataplane) symptomOf(told lbSymptom) (lb.Symptom, bool) {
	if time.Duration(told.At) < d.suspicion.since {
		return lb.Symptom{}, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if int(told.Backend) >= len(d.maps.backends) {
		return lb.Symptom{}, false
	}
	be := &d.maps.backends[told.Backend]
	if be.Gen != told.Gen || be.State != uint8(lbBackendStateBACKEND_ACTIVE) {
		return lb.Symptom{}, false
	}
	name, ok := d.nameOf(be.Service)
	return lb.Symptom{Service: name, Backend: d.maps.addrPort(told.Backend), Kind: lb.SymptomKind(told.Kind)}, ok
}

// tell puts a symptom where it waits.
func (s *suspicion) tell(sym lb.Symptom) {
	select {
	case s.symptoms <- sym:
	default:
		s.lost.Add(1)
	}
}

// symptomsLost returns how many symptoms nobody took in time.
func (d *Dataplane) symptomsLost() uint64 {
	return d.suspicion.lost.Load() + atomic.LoadUint64(&d.maps.symptomsLost[0])
}

var _ dataplane.Witness = (*Dataplane)(nil)
