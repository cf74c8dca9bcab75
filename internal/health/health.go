// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// State is what is known of a backend.
type State uint8

// The states. New connections go to a backend in each of them but Ejected.
const (
	Unknown State = iota // not probed yet, or nobody asks for probes
	Healthy
	Suspect // something speaks against it, and it is being confirmed
	Ejected
)

// String returns unknown, healthy, suspect or ejected.
func (s State) String() string {
	return [...]string{"unknown", "healthy", "suspect", "ejected"}[s]
}

// Verdict is what is thought of one backend of one Service port.
type Verdict struct {
	Service lb.ServiceName
	Backend netip.AddrPort
	State   State
	Reason  string    // of State, for people, such as "http: status 503, want 200-399"
	Since   time.Time // when State began
	Kind    lb.ProbeKind

	// Ignored is why an Ejected backend takes new connections all the same: too few
	// others are left, or its Service would be empty. Empty: it takes none.
	Ignored string

	Ejections int       // how often it was ejected, not long ago: it grows the time
	Until     time.Time // before which an Ejected backend does not come back; zero: no such time
}

// Target is what one probe is about.
type Target struct {
	Addr  netip.AddrPort // where to, with the port of the probe if it has one
	Probe lb.Probe       // complete: nothing in it stands for a default

	// Service is one of those that have the backend; exec gets it in its environment.
	Service lb.ServiceName
}

// Result is what one probe found. Err is nil if the backend is healthy; otherwise its
// text is a reason for people, at most 256 bytes of it from outside, quoted.
type Result struct {
	Err  error
	Took time.Duration
}

// ErrCannot is wrapped by the Err of a Result that says nothing of the backend: this node
// could not probe it, for want of descriptors, of a script or of permission.
var ErrCannot = errors.New("cannot probe")

// ErrUnreached may be wrapped by the Err of a Result that says that no connection came
// about: it was refused or not answered. So does a *net.OpError whose Op is dial.
var ErrUnreached = errors.New("cannot connect")

// Prober probes.
type Prober interface {
	// Start begins a probe and returns soon. done is called once, from any goroutine, at
	// the latest Target.Probe.Timeout after the probe has got one of the bounded number of
	// places, and with context.Canceled's error if Run has ended. done must not block.
	Start(t Target, done func(Result))
	// Run is needed for probes to go on. It returns nil after ctx ends, when no probe
	// is under way any more.
	Run(ctx context.Context) error
}
