// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// Witness is implemented by dataplanes that see what becomes of connections. Its
// methods may be called from any goroutine.
type Witness interface {
	// Symptoms delivers what was seen of Services whose Terms.Suspect is not 0, soon
	// after it was seen. It is never closed. What nobody takes in time is lost, and
	// counted in Stats.SymptomsLost; of many that are alike some may be left out.
	Symptoms() <-chan lb.Symptom

	// Suspect makes new connections avoid a backend until then, as long as there is
	// another one; a time that has passed ends it, and with it what the kernel itself
	// suspects. calm is how long after now the kernel suspects nothing of the backend by
	// itself. A backend that is not there is no error.
	Suspect(name lb.ServiceName, backend netip.AddrPort, until time.Time, calm time.Duration) error
}

// Answers is implemented by dataplanes that do not count connections but see how some of
// them fare. Its method may be called from any goroutine.
type Answers interface {
	// Answered returns what became of the new TCP connections to a backend that were seen so
	// far, of whatever Service. Those that wait for an answer for more than a second have
	// failed. Those that came and went unseen are in no number. Numbers of a backend without
	// new connections may begin at 0 again. !ok: connections cannot be looked at.
	Answered(backend netip.AddrPort) (o lb.Outcomes, ok bool)
}
