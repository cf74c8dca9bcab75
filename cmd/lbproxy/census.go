// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
)

// census is what there is on this node at one time: what the kernel has, and what the agent
// thinks of it.
type census struct {
	at       time.Time
	services []named // sorted by name
	known    opinions
}

// takeCensus looks at the Services of a namespace, or at all. What could not be found out
// is told to notes, a line each.
func (a *app) takeCensus(ctx context.Context, cfg config.Config, namespace string, notes io.Writer) (c census, err error) {
	asking := *a
	asking.stderr = notes
	err = asking.withView(cfg, func(v view) error {
		views, err := v.Services()
		if err != nil {
			return fmt.Errorf("services: %w", err)
		}
		c.at = a.now() // as near as can be to when the counters were read
		if c.services, err = selectServices(views, namespace); err != nil {
			return err
		}
		asking.addResting(ctx, cfg, c.services)
		c.known = asking.askHealth(ctx, cfg)
		return nil
	})
	return c, err
}

// live is how the Services of a node fare: what top and the web page show.
type live struct {
	At       time.Time     `json:"at"`
	Seconds  float64       `json:"seconds"` // that rates are about; 0: there are no rates yet
	Window   float64       `json:"window"`  // seconds that recent shares are about
	Rate     *float64      `json:"rate"`    // new connections each second; null: not known
	Live     uint64        `json:"live"`    // connections that are open
	Services []liveService `json:"services"`
	Notes    []string      `json:"notes"` // what could not be found out
}

// liveService is one port of a Service in one family.
type liveService struct {
	Name          string        `json:"name"` // as lb.ServiceName prints it
	Namespace     string        `json:"namespace"`
	Service       string        `json:"service"`
	Port          string        `json:"port"`
	Proto         string        `json:"proto"`
	Family        string        `json:"family"`
	Algorithm     string        `json:"algorithm"`
	Approximation string        `json:"approximation,omitempty"`
	Frontends     []string      `json:"frontends"` // address:port/PROTO
	Rate          *float64      `json:"rate"`
	Live          uint64        `json:"live"`
	Opened        uint64        `json:"opened"`
	Failed        uint64        `json:"failed"`
	Rejected      uint64        `json:"rejected"`
	LatencyMicros uint32        `json:"latencyMicros,omitempty"` // mean of those of the backends; 0: none is measured
	Out           int           `json:"out"`                     // backends that take no new connections for their health
	Backends      []liveBackend `json:"backends"`
}

// liveBackend is a backend of it.
type liveBackend struct {
	backendItem
	Rate   *float64 `json:"rate"`
	Recent *float64 `json:"recent"` // its share of the Service's new connections within the window; null: there were none, or they are not counted
}

// recent is how far back shares reach.
const recent = time.Minute

// glance is what is kept of a census.
type glance struct {
	at     time.Time
	opened map[openedKey]uint64
}

// apart is the least time between two glances that are kept besides the last, so that they
// are few: of a big node one has megabytes.
const apart = recent / 4

// history is what was seen lately, the oldest first.
type history []glance

// note keeps g, in place of the last glance if that is too near to the one before it.
func (h *history) note(g glance) {
	if n := len(*h); n > 1 && (*h)[n-1].at.Sub((*h)[n-2].at) < apart {
		*h = (*h)[:n-1]
	}
	*h = append(*h, g)
}

// add takes over what was seen last and returns how the Services fare.
func (h *history) add(c census, notes []string) live {
	l := live{At: c.at, Services: []liveService{}, Notes: append([]string{}, notes...)}
	for len(*h) > 1 && c.at.Sub((*h)[0].at) > recent {
		*h = slices.Delete(*h, 0, 1)
	}
	now := glance{c.at, c.opened()}
	var last, first glance
	if n := len(*h); n > 0 {
		last, first = (*h)[n-1], (*h)[0]
		l.Seconds, l.Window = c.at.Sub(last.at).Seconds(), c.at.Sub(first.at).Seconds()
	}
	grown, window := growth(now.opened, last.opened), growth(now.opened, first.opened)
	for _, s := range c.services {
		svc := s.live(c.known)
		of := openedKey{svc.Name, ""}
		n, known := grown[of]
		svc.Rate = quotient(n, known, l.Seconds)
		for i := range svc.Backends {
			b := &svc.Backends[i]
			key := openedKey{svc.Name, b.Address}
			n, known := grown[key]
			b.Rate = quotient(n, known, l.Seconds)
			n, known = window[key]
			b.Recent = quotient(n, known, window[of])
		}
		if svc.Rate != nil {
			if l.Rate == nil {
				l.Rate = new(float64)
			}
			*l.Rate += *svc.Rate
		}
		l.Live += svc.Live
		l.Services = append(l.Services, svc)
	}
	h.note(now)
	return l
}

// openedKey is a backend of a Service; an empty backend stands for all of them.
type openedKey struct{ service, backend string }

// opened returns the counters of what is counted. A backend that is there twice, because it
// left and came back, counts once.
func (c *census) opened() map[openedKey]uint64 {
	counts := map[openedKey]uint64{}
	for _, s := range c.services {
		if s.Kind == kindRules { // rules do not count
			continue
		}
		counts[openedKey{s.ServiceView.Name, ""}] += 0
		for _, b := range s.Backends {
			counts[openedKey{s.ServiceView.Name, b.Address}] += b.Opened
		}
	}
	return counts
}

// growth returns by how much counters have grown, also in sum for each Service: over the
// backends that it has now. What is not known is not there.
func growth(now, before map[openedKey]uint64) map[openedKey]float64 {
	if before == nil {
		return nil
	}
	grown, fallen := make(map[openedKey]float64, len(now)), map[string]bool{}
	for key, n := range now {
		old, of := before[key], openedKey{key.service, ""} // 0 of one that is new: all of its connections are
		grown[of] += 0
		if key.backend != "" && n >= old {
			grown[key] = float64(n - old)
			grown[of] += grown[key]
		}
		fallen[key.service] = fallen[key.service] || n < old // it was removed and added: since when it counts is not known
	}
	for service, is := range fallen {
		if is {
			delete(grown, openedKey{service, ""})
		}
	}
	return grown
}

// quotient returns n/by; nil: that is not known.
func quotient(n float64, known bool, by float64) *float64 {
	if !known || by <= 0 {
		return nil
	}
	q := n / by
	return &q
}

// live returns what does not depend on earlier times.
func (s named) live(known opinions) liveService {
	svc := liveService{
		Name: s.ServiceView.Name, Namespace: s.Namespace, Service: s.ServiceName.Name, Port: s.Port, Proto: s.Proto.String(), Family: s.Family.String(),
		Algorithm: orDash(cmp.Or(s.Algorithm, s.Kind)), Approximation: s.Approximation, Rejected: s.Rejected, Frontends: []string{}, Backends: []liveBackend{},
	}
	for _, fe := range s.Frontends {
		svc.Frontends = append(svc.Frontends, fe.Address)
	}
	measured, latencies := uint64(0), uint64(0)
	for _, item := range backendItems(s, known) {
		svc.Live += item.Live
		svc.Opened += item.Opened
		svc.Failed += item.Failed
		if item.LatencyMicros > 0 {
			measured, latencies = measured+1, latencies+uint64(item.LatencyMicros)
		}
		if item.Health != nil && item.Health.State == stateOut && item.Health.Ignored == "" {
			svc.Out++
		}
		svc.Backends = append(svc.Backends, liveBackend{backendItem: item})
	}
	if measured > 0 {
		svc.LatencyMicros = uint32(latencies / measured)
	}
	return svc
}

// backendItems returns the backends of a Service in order.
func backendItems(s named, known opinions) []backendItem {
	bs := slices.SortedFunc(slices.Values(s.Backends), func(a, b dataplane.BackendView) int {
		return cmp.Or(compareAddresses(a.Address, b.Address), strings.Compare(a.State, b.State))
	})
	items := make([]backendItem, len(bs))
	for i, b := range bs {
		items[i] = backendItem{s.ServiceView.Name, b, known.of(s.ServiceView.Name, b.Address)}
	}
	return items
}

// noteLines returns what notes were written to, a line each.
func noteLines(notes string) []string {
	return strings.FieldsFunc(notes, func(r rune) bool { return r == '\n' })
}
