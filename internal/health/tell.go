// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// The reasons of Events on Services.
const (
	ReasonEjected  = "BackendEjected"  // Warning: it gets no new connections, unless that is ignored
	ReasonRestored = "BackendRestored" // Normal: it gets them again
	ReasonIgnored  = "HealthIgnored"   // Warning: too few backends would be left
	ReasonBlocked  = "ProbeBlocked"    // Warning: probes cannot connect, clients can
	ReasonRefused  = "ProbeRefused"    // Warning: probes cannot be made
)

// news is what is to be told when no lock is held.
type news struct {
	watch   *watch
	backend netip.AddrPort
	reason  string // of an Event; empty: there is none
	text    string // of it
	warning bool
	allowed bool // the Event's Service has not had too many

	suspect bool          // the kernel is to be told:
	calm    time.Duration // that nothing is suspected, and nothing is to be for as long
}

// follow finds out what is to be told of an event of b, whose mark was old.
func (m *Monitor) follow(b *backend, old *mark, e event) {
	w := b.watch
	switch {
	case b.mark.State == Ejected && old.State != Ejected:
		m.event(w, b.addr, ReasonEjected, true, b.mark.Reason)
	case old.State == Ejected && b.mark.State != Ejected:
		how := b.mark.Reason
		if how == "" {
			how = "probes succeed"
		}
		m.event(w, b.addr, ReasonRestored, false, how)
	}
	if b.mark.Blocked && !old.Blocked {
		m.event(w, b.addr, ReasonBlocked, true, b.mark.Reason+": does a NetworkPolicy forbid this node to probe?")
	}
	if e.kind == mute && !w.muted {
		m.event(w, b.addr, ReasonRefused, true, e.reason)
	}
	switch e.kind {
	case mute:
		w.muted = true
	case passed, failed:
		w.muted = false
	case ticked, symptom:
	}
	contradicted := old.Symptom != 0 && b.mark.Calm != old.Calm
	doubted := old.Symptom != 0 && b.mark.Symptom == 0 && b.mark.Trial // others are to tell
	restored := old.State == Ejected && b.mark.State != Ejected
	if m.o.Kernel != nil && w.name.Proto == lb.TCP && w.health.Passive == lb.SwitchOn && (contradicted || doubted || restored) {
		n := news{watch: w, backend: b.addr, suspect: true}
		if contradicted {
			n.calm = b.mark.calm()
		}
		m.news = append(m.news, n)
	}
}

// event notes an Event, and a line of the log.
func (m *Monitor) event(w *watch, backend netip.AddrPort, reason string, warning bool, text string) {
	m.news = append(m.news, news{
		watch: w, backend: backend, reason: reason, text: text, warning: warning,
		allowed: m.budgets.allow(w.name.Object, time.Now()),
	})
}

// tellIgnored notes that ejections in a pool are ignored from now on.
func (m *Monitor) tellIgnored(w *watch, sc lb.Scope, old map[netip.AddrPort]string) {
	is := w.rulings[sc].ignored
	if len(old) > 0 || len(is) == 0 {
		return
	}
	var first netip.AddrPort
	for addr := range is {
		if !first.IsValid() || addr.Compare(first) < 0 {
			first = addr
		}
	}
	pool := [...]string{"cluster", "local"}[sc]
	m.event(w, first, ReasonIgnored, true, fmt.Sprintf("takes new connections although it is ejected: in the %s pool %s", pool, is[first]))
}

// deliver tells the news. No lock is held.
func (m *Monitor) deliver(list []news) {
	for _, n := range list {
		if n.suspect {
			past := time.Now().Add(-time.Second)
			if err := m.o.Kernel.Suspect(n.watch.name, n.backend, past, n.calm); err != nil {
				m.log.Warn("the dataplane goes on suspecting a backend", "service", n.watch.name, "backend", n.backend, "error", err)
			}
		}
		if n.reason == "" {
			continue
		}
		level := slog.LevelInfo
		if !n.allowed {
			level = slog.LevelDebug
		}
		m.log.Log(context.Background(), level, "health", "reason", n.reason, "service", n.watch.name, "backend", n.backend, "why", n.text)
		if !n.allowed || m.o.Reporter == nil {
			continue
		}
		eventtype := "Normal"
		if n.warning {
			eventtype = "Warning"
		}
		message := fmt.Sprintf("%s: backend %s: %s", n.watch.name, n.backend, n.text)
		m.o.Reporter.ServiceEvent(n.watch.name.Object, eventtype, n.reason, message)
	}
}
