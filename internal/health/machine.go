// SPDX-License-Identifier: Apache-2.0

package health

import (
	"fmt"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// How long a backend is out for what became of connections: the first time, and at most.
// Each time doubles it.
const (
	minPenalty = 2 * time.Second
	maxPenalty = 5 * time.Minute
)

// most is how many ejections, and false alarms, are remembered: more make no difference.
const most = 9

// maxCalm is for how long at most symptoms are not heeded after false alarms.
const maxCalm = time.Minute

// memory is how many times as long as its last penalty a backend has to do well until
// one of its ejections is forgotten. The same holds for false alarms.
const memory = 10

// minChance is how long a backend is out at least that no probe ever reached, if a connection
// failed. It may be fine: something may forbid probes, and a client. Then it is on trial:
// it takes connections again, and they tell. Each time doubles it, up to maxPenalty.
const minChance = time.Minute

// maxTrialCalm is for how long symptoms are not heeded of a backend whose connections alone
// tell how it is.
const maxTrialCalm = 10 * time.Second

// deafIntervals is for how many intervals what is known of a backend holds while nothing can
// be found out: that it is ejected, or that its connections are answered.
const deafIntervals = 10

// penalty returns how long the k-th ejection lasts at least; 0 for none.
func penalty(k int) time.Duration {
	if k < 1 {
		return 0
	}
	return min(minPenalty<<(min(k, most)-1), maxPenalty)
}

// causeProbe is the cause of an ejection by active probes. Others are the name of a
// lb.SymptomKind.
const causeProbe = "probe"

// mark is what is known of one backend of one Service port. Its zero value is that of one
// of which nothing is known.
type mark struct {
	State  State
	Reason string
	Cause  string // of the last ejection
	Since  time.Time
	Came   time.Time // zero: long ago

	Good, Bad uint8     // results of probes in a row; one of them is 0
	Heard     time.Time // when a probe last told something
	Proven    bool      // a probe found it healthy since it came
	Unreached bool      // the last probe could not connect
	Blocked   bool      // probes cannot connect, while connections are answered
	Trial     bool      // it came back though probes cannot connect: connections decide
	Trials    int       // how many came to a bad end

	Symptom lb.SymptomKind // why it is Suspect and waits for a probe; 0: not for that
	Told    lb.SymptomKind // the last one; 0: there was none

	Ejections int       // for what became of connections, not yet forgotten
	Until     time.Time // it is not restored before; zero: whenever probes say so
	Forget    time.Time // when Ejections is one less, unless it is ejected
	Alarms    int       // symptoms that a probe contradicted, not yet forgotten
	Trust     time.Time // when Alarms is one less
	Calm      time.Time // symptoms before it are not heeded
}

// passive tells whether m is ejected for what became of connections.
func (m *mark) passive() bool { return m.State == Ejected && m.Cause != causeProbe }

// eventKind is what happened to a backend.
type eventKind uint8

const (
	ticked  eventKind = iota // the time of its wish has come
	passed                   // a probe found it healthy
	failed                   // a probe found that it is not
	mute                     // a probe could not be made
	symptom                  // a connection did not fare well
)

// event is what a backend's mark is told.
type event struct {
	kind      eventKind
	began     time.Time      // of a probe: when it did
	reason    string         // of failed and mute
	unreached bool           // of failed: it could not connect
	traffic   traffic        // of failed and unreached
	symptom   lb.SymptomKind // of symptom
}

// traffic is how connections to a backend fare while probes cannot connect.
type traffic uint8

const (
	trafficUnknown  traffic = iota // nobody has seen it for a while
	trafficNone                    // there is none, or it fails
	trafficFails                   // it fails, of a backend on trial
	trafficOpen                    // it is too early to tell
	trafficAnswered                // it is answered
	trafficUnseen                  // nobody sees what fails as the probe did
)

// wish is what a mark waits for: its next event. Its zero value is none: the mark can be
// forgotten.
type wish struct {
	at    time.Time
	probe bool // by a probe; otherwise by ticked
}

// active tells whether h asks for probes while nothing speaks against a backend.
func active(h *lb.Health) bool {
	return h.Probe.Kind != lb.ProbeNone && h.Probe.Kind != lb.ProbeDefault
}

// step returns what becomes of m by e, and what it waits for then. h is complete.
func step(m mark, e event, now time.Time, h *lb.Health) (mark, wish) {
	if h.Passive != lb.SwitchOn { // probes alone decide
		m.Blocked, m.Trial = false, false
	}
	switch e.kind {
	case passed:
		m.pass(now, h)
	case failed:
		m.fail(e, now, h)
	case mute:
		m.miss(e, now, h)
	case symptom:
		m.suspect(e, now, h)
	}
	m.age(now, h)
	return m, m.wish(e, now, h)
}

// calm returns for how long symptoms are not heeded after the last of m's false alarms.
func (m *mark) calm() time.Duration {
	if m.Trial {
		return min(penalty(m.Alarms), maxTrialCalm)
	}
	return min(penalty(m.Alarms), maxCalm)
}

// alarm takes note that the symptom was a false alarm.
func (m *mark) alarm(now time.Time) {
	m.Alarms = min(m.Alarms+1, most)
	m.Trust = now.Add(memory * penalty(m.Alarms))
	m.Calm = now.Add(m.calm())
	m.Symptom = 0
}

// become changes the state, and says why.
func (m *mark) become(s State, reason string, now time.Time) {
	if m.State != s {
		m.State, m.Since = s, now
	}
	m.Reason = reason
}

// known returns the state of a backend against which nothing speaks.
func (m *mark) known() State {
	if m.Proven {
		return Healthy
	}
	return Unknown
}

// pass takes note of a probe that found the backend healthy.
func (m *mark) pass(now time.Time, h *lb.Health) {
	m.Trial, m.Trials = false, 0
	if m.Symptom != 0 {
		m.alarm(now)
	}
	m.Good, m.Bad = min(m.Good, 254)+1, 0
	m.Heard, m.Proven, m.Unreached, m.Blocked = now, true, false, false
	if m.State == Ejected {
		if m.Good < h.Rise || now.Before(m.Until) {
			return
		}
		m.restore(now)
	}
	m.become(Healthy, "", now)
}

// restore begins to forget ejections.
func (m *mark) restore(now time.Time) {
	m.Until, m.Bad = time.Time{}, 0
	m.Forget = now.Add(memory * penalty(m.Ejections))
}

// graceful tells whether failures do not count yet.
func (m *mark) graceful(now time.Time, h *lb.Health) bool {
	return active(h) && !m.Proven && !m.Came.IsZero() && now.Before(m.Came.Add(h.Grace))
}

// fail takes note of a probe that found the backend not healthy.
func (m *mark) fail(e event, now time.Time, h *lb.Health) {
	m.Good, m.Heard, m.Unreached = 0, now, e.unreached
	if m.graceful(now, h) {
		m.Symptom = 0
		return
	}
	m.Bad = min(m.Bad, 254) + 1
	switch {
	case m.State == Ejected:
		m.Symptom = 0
	case m.Trial && e.unreached && e.traffic == trafficAnswered:
		if m.Bad = 0; m.Symptom != 0 {
			m.alarm(now)
		}
		m.block(e, now)
	case m.Trial && e.unreached && e.traffic == trafficFails:
		m.ejectFor(m.Told, e.reason, now)
	case m.Trial && e.unreached && e.traffic == trafficOpen:
		if m.Symptom != 0 && m.Alarms > 0 { // it may be as the last one was
			m.Calm = now.Add(m.calm())
		}
		m.Bad, m.Symptom = 0, 0
		m.become(Suspect, e.reason+"; waiting for what becomes of its connections", now)
	case m.Symptom != 0:
		m.ejectFor(m.Symptom, e.reason, now)
	case !active(h): // nobody asked
		m.Bad = 0
	case m.Bad < h.Fall:
		m.become(Suspect, e.reason, now)
	case e.unreached && e.traffic == trafficOpen:
		m.become(Suspect, e.reason+"; waiting for what becomes of its connections", now)
	case e.unreached && (e.traffic == trafficAnswered || e.traffic == trafficNone && m.Blocked):
		m.block(e, now)
	default:
		m.Cause, m.Until = causeProbe, time.Time{}
		m.eject(e.reason, now)
		m.Blocked = false
	}
}

// block takes note that connections are answered, while the probe e is about cannot connect.
func (m *mark) block(e event, now time.Time) {
	m.Blocked = true
	m.become(Suspect, e.reason+"; but its connections are answered", now)
}

// eject ejects the backend.
func (m *mark) eject(reason string, now time.Time) {
	if m.Trial {
		m.Trial, m.Trials = false, min(m.Trials+1, most)
		m.Alarms, m.Calm = 0, time.Time{}
	}
	m.become(Ejected, reason, now)
}

// ejectFor ejects the backend for what became of a connection, which a probe confirmed.
func (m *mark) ejectFor(k lb.SymptomKind, reason string, now time.Time) {
	m.Ejections = min(m.Ejections+1, most)
	m.Symptom, m.Cause = 0, k.String()
	m.Until = now.Add(penalty(m.Ejections))
	m.eject("connection "+k.String()+"; "+reason, now)
}

// miss takes note of a probe that could not be made: nothing is known by it. A symptom
// without a confirmation is no reason to take a backend out.
func (m *mark) miss(e event, now time.Time, h *lb.Health) {
	if m.Symptom != 0 {
		m.Symptom = 0
		if m.Bad == 0 {
			m.become(m.known(), "", now)
		}
	}
	if m.State == Ejected && now.Sub(m.Heard) >= deafIntervals*h.Interval {
		m.restore(now)
		m.Proven = false
		m.become(Unknown, e.reason, now)
	}
}

// suspect takes note of a symptom.
func (m *mark) suspect(e event, now time.Time, h *lb.Health) {
	if h.Passive != lb.SwitchOn || m.State == Ejected || m.Symptom != 0 || now.Before(m.Calm) || m.graceful(now, h) {
		return
	}
	m.Symptom, m.Told = e.symptom, e.symptom
	m.become(Suspect, fmt.Sprintf("connection %s; to be confirmed", e.symptom), now)
}

// chance returns for how long m is out at least that no probe can reach. What probes alone
// took out, no client has missed.
func (m *mark) chance(h *lb.Health) time.Duration {
	if h.Passive != lb.SwitchOn || !m.passive() {
		return maxPenalty
	}
	return min(minChance<<m.Trials, maxPenalty)
}

// try lets m come back although probes cannot connect. What they found before is no
// argument any more.
func (m *mark) try(now time.Time, h *lb.Health) {
	m.restore(now)
	m.Trial, m.Proven = h.Passive == lb.SwitchOn, false
}

// age does what time alone does.
func (m *mark) age(now time.Time, h *lb.Health) {
	if m.State == Ejected {
		switch {
		case m.Blocked && !now.Before(m.Until):
			m.try(now, h)
			m.become(Suspect, "its time is over, and probes cannot tell more", now)
		case !m.Proven && m.Unreached && !now.Before(m.Since.Add(m.chance(h))) && !now.Before(m.Until):
			m.try(now, h)
			m.become(Unknown, "no probe ever reached it; connections may", now)
		}
	}
	for m.State != Ejected && m.Ejections > 0 && !now.Before(m.Forget) {
		m.Ejections--
		m.Forget = m.Forget.Add(memory * penalty(m.Ejections))
	}
	for m.Alarms > 0 && !now.Before(m.Trust) {
		m.Alarms--
		m.Trust = m.Trust.Add(memory * penalty(m.Alarms))
	}
}

// wish returns what m waits for after e. Times between probes count from their beginning.
func (m *mark) wish(e event, now time.Time, h *lb.Health) wish {
	from := now
	if !e.began.IsZero() {
		from = e.began
	}
	switch {
	case m.Symptom != 0, e.kind == symptom && m.graceful(now, h):
		return wish{now, true}
	case m.State == Ejected && !active(h) && now.Before(m.Until):
		return wish{m.Until, true}
	case m.State == Ejected || m.Trial || active(h):
		at := from.Add(m.pause(h))
		if m.State == Ejected && now.Before(m.Until) && m.Until.Before(at) {
			at = m.Until
		}
		return wish{later(at, now), true}
	case m.Ejections > 0 && (m.Alarms == 0 || m.Forget.Before(m.Trust)):
		return wish{m.Forget, false}
	case m.Alarms > 0:
		return wish{m.Trust, false}
	}
	return wish{}
}

// pause returns the time between two probes: a short one while they contradict the state.
func (m *mark) pause(h *lb.Health) time.Duration {
	contradict := m.Bad > 0
	if m.State == Ejected {
		contradict = m.Good > 0
	}
	if contradict && !m.Blocked {
		return h.FastInterval
	}
	return h.Interval
}

// later returns the later one of a and b.
func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
