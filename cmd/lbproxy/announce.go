// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"
	"maps"
	"sync"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// reasonApproximated is the reason of Events on Services whose algorithm is not exact.
const reasonApproximated = "Approximated"

// approximations is what of the algorithms of Services the dataplane only approximates.
// Its methods may be called from any goroutine.
type approximations struct {
	event func(obj lb.Object, eventtype, reason, message string) // nil: nobody wants to know
	log   *slog.Logger

	mu         sync.Mutex
	algorithms map[lb.ServiceName]string // of Services that could be approximated
	texts      map[lb.ServiceName]string
}

func newApproximations(log *slog.Logger) *approximations {
	return &approximations{log: log, algorithms: map[lb.ServiceName]string{}, texts: map[lb.ServiceName]string{}}
}

// note remembers the algorithms of Services that the dataplane is about to be told of.
func (a *approximations) note(d dataplane.Delta) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if d.Full {
		clear(a.algorithms)
		known := map[lb.ServiceName]bool{}
		for _, svc := range d.Put {
			known[svc.Name] = true
		}
		maps.DeleteFunc(a.texts, func(n lb.ServiceName, _ string) bool { return !known[n] })
	}
	for _, n := range d.Delete {
		delete(a.algorithms, n)
		delete(a.texts, n)
	}
	for _, svc := range d.Put {
		if svc.Balance.Algorithm != "random" { // it is exact everywhere
			a.algorithms[svc.Name] = svc.Balance.Algorithm
		}
	}
}

// announce takes note of what is approximated of a Service, and tells it once.
func (a *approximations) announce(name lb.ServiceName, text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.texts[name]
	if text == "" {
		delete(a.texts, name)
		return
	}
	a.texts[name] = text
	if old == text {
		return
	}
	a.log.Debug("algorithm is approximated", "service", name, "how", text)
	if a.event != nil {
		a.event(name.Object, "Normal", reasonApproximated, name.String()+": "+text)
	}
}

// count returns how many Services are approximated, by algorithm.
func (a *approximations) count() map[string]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := map[string]int{}
	for name := range a.texts {
		n[a.algorithms[name]]++
	}
	return n
}
