// SPDX-License-Identifier: Apache-2.0

// Package dptest is the contract of a dataplane, as tests: the same rows run on
// the fake and on every real one, which brings a Harness.
package dptest

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Origin is where a connection comes from.
type Origin string

// The origins.
const (
	PodHooked   Origin = "hooked pod"   // on the node, translated at connect()
	PodUnhooked Origin = "unhooked pod" // on the node, on the packet path
	Node        Origin = "node"         // a process of the node
	Outside     Origin = "outside"      // another machine, no pod
	Remote      Origin = "remote pod"   // on another node
	Self        Origin = "backend 0"    // Addresses.Backends[0], on the packet path if it can be
)

// Verdict is what the caller got.
type Verdict string

// The verdicts. Mixed is for a Flow whose attempts had different ones.
const (
	OK        Verdict = "ok"
	Refused   Verdict = "refused"   // at once: connection refused, also for UDP
	Dropped   Verdict = "dropped"   // neither an answer nor a refusal
	Untouched Verdict = "untouched" // no Service's business, if a harness can tell
	Mixed     Verdict = "mixed"
)

// Flow is N connections (UDP: exchanges), each from a fresh socket.
type Flow struct {
	From  Origin
	To    netip.AddrPort
	Proto lb.Proto
	N     int

	Source netip.Addr // that the caller binds to, one of the origin's; zero: it leaves the choice to its host

	// Silence says that no answer is expected, so a short wait for one will do.
	// Without it an answer may take as long as a busy machine needs.
	Silence bool
}

// String names the flow in test output.
func (f Flow) String() string {
	return fmt.Sprintf("%d from %s to %s/%s", f.N, f.From, f.To, f.Proto)
}

// Outcome is what became of a Flow.
type Outcome struct {
	Verdict  Verdict
	Backends map[netip.AddrPort]int // which backend answered how often
	Seen     []netip.Addr           // the source addresses that backends saw
	Peer     netip.AddrPort         // whom the client believes it talks to (getpeername, recvfrom)
}

// Backend is a pod that answers.
type Backend struct {
	V4, V6 netip.Addr
	Local  bool // on the node
}

// Addresses describe the network of a Harness.
type Addresses struct {
	Backends     []Backend // at least three local ones, those first
	Ports        [2]uint16 // at both of which every backend answers, TCP and UDP
	Node         []netip.Addr
	ServiceVIPs  []netip.Prefix          // for cluster IPs: one of each family, 256 addresses or more
	ExternalVIPs []netip.Prefix          // for load balancer and external IPs, as ServiceVIPs
	Sources      map[Origin][]netip.Addr // those of Node are all it has
	Many         []netip.Addr            // further addresses of Outside, dozens of each family
}

// Feature is something that not every Harness can do. Each Origin is one, too.
type Feature string

// The features.
const (
	FeatureIPv4       Feature = "IPv4"
	FeatureIPv6       Feature = "IPv6"
	FeatureTCP        Feature = "TCP"
	FeatureUDP        Feature = "UDP"
	FeatureLocalhost4 Feature = "node ports on 127.0.0.1"
	FeatureLocalhost6 Feature = "node ports on ::1"
	FeatureRemote     Feature = "a backend on another node"
	FeatureSeen       Feature = "knows the source that backends saw"
	FeaturePeer       Feature = "knows the client's peer"
	FeatureWrites     Feature = "counts writes" // the Dataplane is a WriteCounter
	FeatureFaults     Feature = "fails as told" // the Dataplane is a Faulter
	FeatureHeld       Feature = "holds connections"
	FeatureExactTurns Feature = "exact round-robin"  // else: each backend is reached
	FeatureDrop       Feature = "drop is not refuse" // else: a drop may look like a refusal
	FeatureReopen     Feature = "starts again"       // the Harness is a Reopener
	FeatureFlows      Feature = "holds UDP flows"    // the Harness is a FlowHolder

	FeatureSuspect       Feature = "avoids suspects"         // the Dataplane is a Witness that heeds Suspect
	FeatureSocketPath    Feature = "translates sockets"      // else: processes of the node are on the packet path, too
	FeatureReferenceHash Feature = "hashes as the reference" // else: by a hash of its own
	FeatureExactLoad     Feature = "knows loads exactly"     // else: now and then, and the Harness is a Refresher
)

// WriteCounter is implemented by a Dataplane that counts its writes to the kernel.
type WriteCounter interface{ Writes() uint64 }

// Faulter is implemented by a Dataplane that can fail for one Service, until err
// is nil.
type Faulter interface {
	FailService(name lb.ServiceName, err error)
}

// Held is a connection that lasts until it is closed.
type Held struct {
	Backend netip.AddrPort
	Check   func() error // nil: bytes go both ways
	Close   func()       // the dataplane knows of the end when it returns
}

// HeldFlow is a UDP flow that lasts until it is closed.
type HeldFlow struct {
	Backend   netip.AddrPort
	Connected bool // the socket was translated when it was connected: it cannot move

	// Again makes one more exchange on the same socket and returns who answered.
	// The error tells that nobody did, within a short time if silence says that this
	// is expected, or that the socket was destroyed.
	Again func(silence bool) (netip.AddrPort, error)
	Close func()
}

// FlowHolder is implemented by a Harness that can hold UDP flows.
type FlowHolder interface {
	// OpenFlow makes a first exchange, which must succeed.
	OpenFlow(t *testing.T, f Flow) HeldFlow
}

// Reopener is implemented by a Harness whose agent can start again: what the kernel
// has stays.
type Reopener interface {
	Reopen(t *testing.T) dataplane.Dataplane
}

// Refresher is implemented by a Harness whose dataplane knows loads only now and then.
type Refresher interface {
	// Refresh makes the dataplane look at the loads, and heed them when it returns.
	Refresh(t *testing.T)
}

// Waiter is implemented by a Harness that has a clock of its own.
type Waiter interface {
	Wait(d time.Duration)
	Now() time.Time
}

// Harness connects the suite with a dataplane and a network.
type Harness interface {
	// Dataplane returns an empty Dataplane, which ends with t. There is one at a
	// time.
	Dataplane(t *testing.T) dataplane.Dataplane
	// Addrs describes the network. It is always the same.
	Addrs() Addresses
	// Try makes the attempts of f, one after the other.
	Try(t *testing.T, f Flow) Outcome
	// Open makes one connection that stays, which must succeed.
	Open(t *testing.T, f Flow) Held
	// Supports tells whether rows that need a feature can run.
	Supports(f Feature) bool
}

// sections are the parts of the contract, for each protocol and family.
var sections = []struct {
	name string
	run  func(t *testing.T, e *env)
}{
	{"reach", runReach}, {"change", runChange}, {"balance", runBalance}, {"algorithms", runAlgorithms},
	{"affinity", runAffinity}, {"ranges", runRanges}, {"drain", runDrain}, {"suspect", runSuspect},
	{"contract", runContract},
}

// Run runs the whole contract. What the Harness does not support is skipped, and
// listed at the end.
func Run(t *testing.T, h Harness) { RunSome(t, h, nil) }

// RunSome runs the parts of the contract that some has, named as "TCP over IPv4/reach"; nil
// has all.
func RunSome(t *testing.T, h Harness, some []string) {
	s := &suite{h: h, addrs: h.Addrs(), skipped: map[Feature]int{}}
	defer s.report(t)
	ran := 0
	for _, proto := range []lb.Proto{lb.TCP, lb.UDP} {
		for _, fam := range []lb.Family{lb.IPv4, lb.IPv6} {
			kind := fmt.Sprintf("%s over %s", proto, fam)
			t.Run(kind, func(t *testing.T) {
				s.need(t, Feature(proto.String()), Feature(fam.String()))
				for _, sec := range sections {
					if some == nil || slices.Contains(some, kind+"/"+sec.name) {
						ran++
						t.Run(sec.name, func(t *testing.T) { sec.run(t, s.env(proto, fam)) })
					}
				}
			})
		}
	}
	if some != nil && ran != len(some) {
		t.Errorf("%d parts of %v ran", ran, some)
	}
}

// Names returns the names of the rows of session affinity, source ranges, draining,
// change, reach and suspicion, as "section/row": those that run for several origins say that behind a comma.
func Names() []string {
	names := []string{"affinity/it survives a start of the agent", "affinity/the timeout slides, and ends",
		"ranges/what is established outlives its range"}
	for _, row := range affinityRows {
		names = append(names, "affinity/"+row.name)
	}
	for _, row := range rangeRows {
		names = append(names, "ranges/"+row.name)
	}
	for _, row := range drainRows {
		names = append(names, "drain/the backend "+row.name)
	}
	for _, row := range changeRows {
		names = append(names, "change/"+row.name)
	}
	for _, row := range reachRows {
		names = append(names, "reach/"+row.target)
	}
	for _, row := range suspectRows {
		names = append(names, "suspect/"+row.name)
	}
	return names
}

// suite is what all rows share.
type suite struct {
	h     Harness
	addrs Addresses

	mu      sync.Mutex
	skipped map[Feature]int
}

// need skips the test, and counts that, if a feature is missing.
func (s *suite) need(t *testing.T, features ...Feature) {
	t.Helper()
	for _, f := range features {
		if s.h.Supports(f) {
			continue
		}
		s.mu.Lock()
		s.skipped[f]++
		s.mu.Unlock()
		t.Skipf("the harness does not support: %s", f)
	}
}

func (s *suite) report(t *testing.T) {
	for _, f := range slices.Sorted(maps.Keys(s.skipped)) {
		t.Logf("not covered, the harness does not support %q: %d rows", f, s.skipped[f])
	}
}

// env is one section: a protocol, a family, and a Dataplane.
type env struct {
	*suite
	proto lb.Proto
	fam   lb.Family
	dp    dataplane.Dataplane
	vips  map[netip.Prefix]netip.Addr // the last one given out
	ports uint16                      // the last node port given out
}

func (s *suite) env(proto lb.Proto, fam lb.Family) *env {
	return &env{suite: s, proto: proto, fam: fam, vips: map[netip.Prefix]netip.Addr{}, ports: 30500}
}

// sync applies d, which must succeed.
func (e *env) sync(t *testing.T, d dataplane.Delta) {
	t.Helper()
	if err := e.dp.Sync(t.Context(), d); err != nil {
		t.Fatalf("sync: %v", err)
	}
}

// put applies svcs, which must succeed.
func (e *env) put(t *testing.T, svcs ...*dataplane.Service) {
	t.Helper()
	e.sync(t, dataplane.Delta{Put: svcs})
}

// try makes n attempts.
func (e *env) try(t *testing.T, from Origin, to netip.AddrPort, n int) (Flow, Outcome) {
	t.Helper()
	f := Flow{From: from, To: to, Proto: e.proto, N: n}
	return f, e.h.Try(t, f)
}

// paths are the origins of rows that are about paths through the dataplane. Without a
// socket path both sorts of pods are on the same one.
func (e *env) paths() []Origin {
	if !e.h.Supports(FeatureSocketPath) {
		return []Origin{PodUnhooked, Outside}
	}
	return []Origin{PodHooked, PodUnhooked, Outside}
}

// wait lets d pass.
func (e *env) wait(d time.Duration) {
	if w, ok := e.h.(Waiter); ok {
		w.Wait(d)
		return
	}
	<-time.After(d)
}

// now returns the time by which d passes in wait.
func (e *env) now() time.Time {
	if w, ok := e.h.(Waiter); ok {
		return w.Now()
	}
	return time.Now()
}

// reaches fails unless to is answered by exactly the backends want.
func (e *env) reaches(t *testing.T, from Origin, to netip.AddrPort, want ...lb.Backend) Outcome {
	t.Helper()
	f, got := e.try(t, from, to, 2*len(want))
	addrs := map[netip.AddrPort]bool{}
	for _, be := range want {
		addrs[be.Addr] = true
	}
	if got.Verdict != OK {
		t.Errorf("%s: %s, want ok", f, got.Verdict)
		return got
	}
	for be := range got.Backends {
		if !addrs[be] {
			t.Errorf("%s: %s answered, want only %v", f, be, slices.Collect(maps.Keys(addrs)))
		}
	}
	for be := range addrs {
		if got.Backends[be] == 0 {
			t.Errorf("%s: %s never answered: %v", f, be, got.Backends)
		}
	}
	if e.h.Supports(FeaturePeer) && got.Peer != to {
		t.Errorf("%s: the client's peer is %s", f, got.Peer)
	}
	return got
}

// fails fails unless the caller gets verdict want.
func (e *env) fails(t *testing.T, from Origin, to netip.AddrPort, want Verdict) {
	t.Helper()
	f := Flow{From: from, To: to, Proto: e.proto, N: 1, Silence: want != Refused}
	got := e.h.Try(t, f)
	switch {
	case got.Verdict == want:
	case want == Untouched && (got.Verdict == Dropped || got.Verdict == Refused):
		// On a real network nobody has that address, or nobody listens.
	case want == Dropped && got.Verdict == Refused && !e.h.Supports(FeatureDrop):
	default:
		t.Errorf("%s: %s by %v, want %s", f, got.Verdict, got.Backends, want)
	}
}
