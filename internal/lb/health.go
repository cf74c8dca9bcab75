// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"
)

// ProbeKind is how a backend is asked whether it works.
type ProbeKind uint8

// The kinds of probes. ProbeDefault is what the cluster's default says.
const (
	ProbeDefault ProbeKind = iota
	ProbeNone
	ProbeTCP
	ProbeHTTP
	ProbeHTTPS
	ProbeGRPC
	ProbeExec
)

// String returns the annotation's spelling; ProbeDefault is default.
func (k ProbeKind) String() string {
	names := [...]string{"default", "none", "tcp", "http", "https", "grpc", "exec"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("probe-%d", uint8(k))
}

// Probe is what one probe of a backend does. It is comparable: backends with the same
// address and the same Probe need one probe between them.
type Probe struct {
	Kind    ProbeKind
	Port    uint16        // 0: the backend's own
	Timeout time.Duration // of the whole probe

	Path    string // of HTTP and HTTPS; begins with a slash
	Host    string // of HTTP, HTTPS and gRPC: the name that is asked for and, by TLS, shown and verified; empty: the backend's address
	Headers string // of HTTP and HTTPS: lines of "Name: value", each with a line feed at its end
	Expect  string // of HTTP and HTTPS: which status is healthy, such as "200-399" or "200,204"
	Body    string // of HTTP and HTTPS: what the body contains; empty: whatever it is
	Verify  bool   // of HTTPS: the certificate must be valid for Host; otherwise any is

	GRPCService string // of gRPC; empty: the server as a whole
	Script      string // of exec: a name in the directory of scripts
}

// Percent is a whole number from 1 to 100. 0 stands for the cluster's default,
// NoPercent for 0 %.
type Percent int8

// NoPercent is 0 %.
const NoPercent Percent = -1

// Of returns how many of n are p of them, rounded down.
func (p Percent) Of(n int) int { return n * int(max(p, 0)) / 100 }

// Switch is on, off, or as the cluster's default is.
type Switch uint8

// The values of a Switch.
const (
	SwitchDefault Switch = iota
	SwitchOn
	SwitchOff
)

// Health is how the backends of a Service are watched. It is comparable. The zero
// value of a field is the cluster's default.
type Health struct {
	Probe  Probe
	Verify Switch // what Probe.Verify becomes in Or

	Interval     time.Duration // between two probes of a backend
	FastInterval time.Duration // the same while they contradict its state
	Grace        time.Duration // after a backend came, while failures do not count unless it was healthy once; negative: none
	Rise, Fall   uint8         // how many successes, failures in a row change its state

	Passive    Switch  // what becomes of connections counts
	MaxEjected Percent // of a pool's backends may be out for what became of connections
	Panic      Percent // of a pool's backends must be left, or health is ignored
	Drain      Switch  // UDP flows, and sockets connected to a backend, do not stay when it is out
}

// Or returns h with what it does not say as d says it, field by field; if d is complete,
// so is the result. Of the probe only what its kind uses is left, so that probes that do
// the same are equal: the result is no d for others.
func (h Health) Or(d Health) Health {
	p, q := h.Probe, d.Probe
	p.Kind, p.Port, p.Timeout = cmp.Or(p.Kind, q.Kind), cmp.Or(p.Port, q.Port), cmp.Or(p.Timeout, q.Timeout)
	p.Path, p.Host, p.Headers = cmp.Or(p.Path, q.Path), cmp.Or(p.Host, q.Host), cmp.Or(p.Headers, q.Headers)
	p.Expect, p.Body = cmp.Or(p.Expect, q.Expect), cmp.Or(p.Body, q.Body)
	p.GRPCService, p.Script = cmp.Or(p.GRPCService, q.GRPCService), cmp.Or(p.Script, q.Script)
	h.Verify = cmp.Or(h.Verify, d.Verify)
	p.Verify = h.Verify == SwitchOn
	h.Probe = p.used()
	h.Interval = cmp.Or(h.Interval, d.Interval)
	h.FastInterval = cmp.Or(h.FastInterval, d.FastInterval)
	h.Grace = cmp.Or(h.Grace, d.Grace)
	h.Rise, h.Fall = cmp.Or(h.Rise, d.Rise), cmp.Or(h.Fall, d.Fall)
	h.Passive = cmp.Or(h.Passive, d.Passive)
	h.MaxEjected, h.Panic = cmp.Or(h.MaxEjected, d.MaxEjected), cmp.Or(h.Panic, d.Panic)
	h.Drain = cmp.Or(h.Drain, d.Drain)
	return h
}

// On returns h as it holds for ports of a protocol. Probes connect by TCP: ports of other
// protocols are probed only by a script, or at a port that is named, and only of TCP
// it is known what becomes of connections.
func (h Health) On(p Proto) Health {
	if p == TCP {
		return h
	}
	h.Passive = SwitchOff
	if h.Probe.Kind != ProbeExec && h.Probe.Port == 0 {
		h.Probe = Probe{Kind: ProbeNone, Timeout: h.Probe.Timeout}
	}
	return h
}

// used returns what of p its kind uses.
func (p Probe) used() Probe {
	u := Probe{Kind: p.Kind, Port: p.Port, Timeout: p.Timeout}
	switch p.Kind {
	case ProbeHTTP, ProbeHTTPS:
		u.Path, u.Host, u.Headers, u.Expect, u.Body = p.Path, p.Host, p.Headers, p.Expect, p.Body
		u.Verify = p.Verify && p.Kind == ProbeHTTPS
	case ProbeGRPC:
		u.Host, u.GRPCService = p.Host, p.GRPCService
	case ProbeExec:
		u.Script = p.Script
	case ProbeNone:
		u.Port = 0
	case ProbeDefault, ProbeTCP:
	}
	return u
}

// SymptomKind is what became of a connection.
type SymptomKind uint8

// The kinds of symptoms.
const (
	Refused    SymptomKind = iota + 1 // it was answered by a reset before it was established
	Unanswered                        // its first packet was sent again, as nobody had answered
	Reset                             // the backend reset it when it was established
)

// String returns refused, unanswered or reset.
func (k SymptomKind) String() string {
	switch k {
	case Refused:
		return "refused"
	case Unanswered:
		return "unanswered"
	case Reset:
		return "reset"
	}
	return fmt.Sprintf("symptom-%d", uint8(k))
}

// Outcomes is what became of TCP connections of this node to a backend, as far as it is known.
type Outcomes struct {
	Answered uint64 // connections so far that were established
	Failed   uint64 // that ended before they were, or wait too long for it

	At         time.Time // when this was read: what came later is in neither
	NoRefusals bool      // connections that are refused are in neither, nor symptoms
}

// Symptom tells of a connection of this node that did not fare well.
type Symptom struct {
	Service ServiceName
	Backend netip.AddrPort
	Kind    SymptomKind
}
