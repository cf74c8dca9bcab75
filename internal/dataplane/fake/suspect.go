// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"net/netip"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// symptomsWaiting is how many symptoms wait for whoever takes them.
const symptomsWaiting = 1024

// suspicion is what speaks against a backend. Times are those of Options.Now.
type suspicion struct {
	until time.Time // new connections avoid it before then
	calm  time.Time // nobody is suspected before then
	reset time.Time // no other reset is told of before then
}

// Symptoms implements dataplane.Witness.
func (d *Dataplane) Symptoms() <-chan lb.Symptom { return d.symptoms }

// Suspect implements dataplane.Witness.
func (d *Dataplane) Suspect(name lb.ServiceName, backend netip.AddrPort, until time.Time, calm time.Duration) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	on := connections{name, backend}
	s := d.suspects[on]
	s.until, s.calm = until, d.opts.Now().Add(calm)
	d.suspects[on] = s
	return nil
}

// See makes the pretended kernel see what became of a connection: the backend is avoided,
// and a symptom is told, as the Service's terms say.
func (d *Dataplane) See(sym lb.Symptom) {
	d.mu.Lock()
	defer d.mu.Unlock()
	terms, on, now := d.installed[sym.Service].terms, connections{sym.Service, sym.Backend}, d.opts.Now()
	s := d.suspects[on]
	until := &s.until
	if sym.Kind == lb.Reset {
		until = &s.reset
	}
	if terms == nil || terms.Suspect == 0 || now.Before(s.calm) || now.Before(*until) {
		return
	}
	*until = now.Add(terms.Suspect)
	d.suspects[on] = s
	select {
	case d.symptoms <- sym:
	default:
		d.symptomsLost++
	}
}

// avoids tells whether new connections avoid a backend. d.mu is held.
func (d *Dataplane) avoids(on connections) bool {
	terms := d.installed[on.service].terms
	return terms != nil && terms.Suspect > 0 && on.service.Proto == lb.TCP && d.opts.Now().Before(d.suspects[on].until)
}

// calm returns member i of r, which was picked for in, or another one if that is suspect.
// d.mu is held.
func (d *Dataplane) calm(svc lb.ServiceName, r *region, in algo.Input, i int) (member int, turns uint32) {
	suspect := func(i int) bool { return d.avoids(connections{svc, r.backends[i].Addr}) }
	if !suspect(i) {
		return i, 0
	}
	return algo.Avoid(r.table, in, i, func(i int) bool { return r.backends[i].Weight > 0 && !suspect(i) })
}

var _ dataplane.Witness = (*Dataplane)(nil)
