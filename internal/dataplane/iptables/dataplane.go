// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Options say how a Dataplane works and what belongs to the cluster.
type Options struct {
	Backend            string      // of the iptables programs: nft or legacy; empty or auto: what the node uses
	Families           []lb.Family // none: those that work
	HashSeed           uint64      // of hashes of connections; the same on every node
	MasqueradeBit      uint8       // of the packet mark, 0..31
	LocalhostNodePorts bool        // node ports are served at 127.0.0.0/8, by a sysctl
	NodeAddrs          []netip.Addr
	Local              lb.LocalDetector
	NodePorts          lb.NodePortAddresses
	Conntrack          Conntrack
	LockFile           string        // held while a Dataplane is open; empty: DefaultLockFile
	Period             time.Duration // of looking at loads; 0: a second

	// Latency is how long connections to a backend take to be established; 0: not known.
	// nil: nobody knows.
	Latency func(netip.AddrPort) time.Duration
	// Measure is told whose Latency is wanted, when that changes; may be nil.
	Measure func([]netip.AddrPort)
	// Announce is told what of a Service's algorithm is only approximated, when that
	// changes; empty: nothing is any more. It must not block; may be nil.
	Announce func(lb.ServiceName, string)

	Log *slog.Logger
}

func (o Options) orDefault() Options {
	if o.Backend == "" {
		o.Backend = autoBackend
	}
	if o.LockFile == "" {
		o.LockFile = DefaultLockFile
	}
	if o.Period == 0 {
		o.Period = time.Second
	}
	if o.Latency == nil {
		o.Latency = func(netip.AddrPort) time.Duration { return 0 }
	}
	if o.Announce == nil {
		o.Announce = func(lb.ServiceName, string) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Dataplane is lbproxy's rules and ipsets on one node. Open, Sync, Audit and Run work in
// the network namespace of the thread that calls them, which must be the same.
type Dataplane struct {
	opts     Options
	lock     *os.File
	sets     *sets
	watcher  *watcher
	feedback *feedback
	witness  *witness
	liberal  bool          // conntrack lets packets outside of the TCP window pass
	look     chan struct{} // capacity 1: the Node changed
	node     atomic.Pointer[lb.Node]
	addrs    *dataplane.Addresses
	restored atomic.Uint64 // chains that were written or removed

	fail func(lb.ServiceName) error // of tests: why a Service cannot be programmed

	log      faults           // of Run, as is measured
	measured []netip.AddrPort // whose latencies are wanted
	retry    time.Time        // when to try again what failed

	mu       sync.Mutex // guards everything below
	families map[lb.Family]*family
	services map[lb.ServiceName]*service
	owners   map[lb.FrontendKey]lb.ServiceName
	members  map[setMember]int // how many Services need them
	complete bool              // a full Sync was made
	audited  snapshot
	reading  map[chainKey]bool // chains that were written while rules are being read; nil: they are not
}

// family is what is kept of one family.
type family struct {
	roots
	facts
	runner   *runner
	vips     *tree
	ports    *tree
	hairpins *tree
	local    map[netip.Addr]int       // how many Services have a backend with that address here
	chains   map[table]map[string]sum // what the kernel has; nil: that is not known
	hooked   bool                     // the jumps are there
	outdated bool                     // Services are to be rendered anew: the Node changed
	pending  []served                 // whose flows could not be ended
	counted  ruleCounts
}

// service is one Service as the kernel has it.
type service struct {
	*dataplane.Service
	shares [2][]float64 // by scope, from loads
	out    rendered
}

// Open takes over what an earlier agent left in the network namespace of the calling
// thread. Nothing is changed before the first Sync. The error wraps ErrRunning while
// another process has it open.
func Open(opts Options) (_ *Dataplane, err error) {
	opts = opts.orDefault()
	d := &Dataplane{
		opts: opts, addrs: dataplane.NewAddresses(opts.Local, opts.NodePorts), look: make(chan struct{}, 1), families: map[lb.Family]*family{},
		services: map[lb.ServiceName]*service{}, owners: map[lb.FrontendKey]lb.ServiceName{}, members: map[setMember]int{},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if err = requirePrivileges(); err != nil {
		return nil, err
	}
	if d.lock, err = lockFile(opts.LockFile); err != nil {
		return nil, err
	}
	s := systemSettings(opts.Log)
	opts.Conntrack.apply(s)
	d.liberal = opts.Conntrack.TCPLiberal || s.liberal()
	if err := d.openFamilies(); err != nil {
		return nil, err
	}
	if d.sets, err = openSets(); err != nil {
		return nil, err
	}
	var runners []*runner
	for _, fam := range d.families {
		runners = append(runners, fam.runner)
	}
	if d.watcher, err = newWatcher(runners); err != nil {
		return nil, err
	}
	d.feedback = newFeedback(d.loaded, opts.Latency, d.reshare, opts.Log)
	d.witness = newWitness(d.anySuspects, d.suspecting, d.feedback.flows)
	if d.witness.refusals, err = openRefusals(s); err != nil {
		opts.Log.Warn("connections that are refused are not seen", "error", err)
	}
	return d, nil
}

// openFamilies finds the programs of the families. Without Options.Families it is enough
// if one works.
func (d *Dataplane) openFamilies() error {
	var errs []error
	for _, f := range families {
		if len(d.opts.Families) > 0 && !slices.Contains(d.opts.Families, f) {
			continue
		}
		r, err := newRunner(f, d.opts.Backend, runnerOptions{})
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f, err))
			continue
		}
		d.families[f] = d.newFamily(f, r)
	}
	err := errors.Join(errs...)
	if err != nil && len(d.families) > 0 && len(d.opts.Families) == 0 {
		d.opts.Log.Warn("only one family is served", "error", err)
		return nil
	}
	return err
}

// anyBPF is a program that matches every packet.
const anyBPF = `-m bpf --bytecode "1,6 0 0 1"`

func (d *Dataplane) newFamily(f lb.Family, r *runner) *family {
	fam := &family{runner: r}
	fam.facts.seed = d.opts.HashSeed
	fam.facts.bpf = r.supports(context.Background(), natTable, anyBPF+" -j RETURN") == nil
	fam.roots = roots{
		family: f, mark: 1 << d.opts.MasqueradeBit, localhost: d.localhost(f),
		randomFully: r.supports(context.Background(), natTable, "-j MASQUERADE --random-fully") == nil,
		sourcePorts: localPorts(),
		liberal:     d.liberal,
		local:       d.addrs.Local(), nodePorts: d.addrs.NodePorts(),
		vips: hashName("T-", "vips"), ports: hashName("T-", "ports"), hairpins: hashName("T-", "hairpins"),
	}
	fam.trees()
	return fam
}

// localhost tells whether node ports are served at the loopback addresses of f.
func (d *Dataplane) localhost(f lb.Family) bool {
	return f == lb.IPv4 && d.opts.LocalhostNodePorts &&
		d.addrs.NodePorts().Serves(netip.AddrFrom4([4]byte{127, 0, 0, 1}), d.knownNode())
}

// trees makes empty trees.
func (fam *family) trees() {
	to := func(p netip.Prefix) string { return "-d " + p.String() }
	toItself := func(p netip.Prefix) string {
		if p.IsSingleIP() {
			return "-s " + p.String() + " -d " + p.String()
		}
		return "-s " + p.String()
	}
	f := fam.roots.family
	fam.vips = newTree(fam.roots.vips, f, true, to)
	fam.ports = newTree(fam.roots.ports, f, false, nil)
	fam.hairpins = newTree(fam.roots.hairpins, f, true, toItself)
	fam.local = map[netip.Addr]int{}
}

// knownNode returns what the Node object says, as far as that is known.
func (d *Dataplane) knownNode() lb.Node {
	if n := d.node.Load(); n != nil {
		return *n
	}
	return lb.Node{}
}

// SetNode tells what the Node object says.
func (d *Dataplane) SetNode(n lb.Node) {
	d.node.Store(&n)
	d.lookAgain()
}

// SetAddresses tells other addresses than those of Options. Run takes them over.
func (d *Dataplane) SetAddresses(pods []netip.Prefix, nodePorts lb.NodePortAddresses) {
	d.addrs.Set(pods, nodePorts)
	d.lookAgain()
}

// lookAgain makes Run take over what has been told.
func (d *Dataplane) lookAgain() {
	select {
	case d.look <- struct{}{}:
	default: // it has been told to look
	}
}

// Backend returns nft or legacy: which implementation of iptables is used.
func (d *Dataplane) Backend() string {
	for _, fam := range d.families {
		return fam.runner.backend()
	}
	return ""
}

// Writes returns how many chains and members of ipsets were written or removed so far.
func (d *Dataplane) Writes() uint64 { return d.restored.Load() + d.sets.writes() }

// Close releases the Dataplane. Everything stays in the kernel and goes on.
func (d *Dataplane) Close() error {
	var errs []error
	if d.watcher != nil {
		errs = append(errs, d.watcher.close())
	}
	if d.sets != nil {
		d.sets.close()
	}
	if d.feedback != nil {
		d.feedback.close()
	}
	if d.witness != nil && d.witness.refusals != nil {
		d.witness.refusals.close()
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}

// loaded returns the pools whose shares depend on loads.
func (d *Dataplane) loaded() []loaded {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []loaded
	for name, svc := range d.services {
		for _, sc := range []lb.Scope{lb.ScopeCluster, lb.ScopeLocal} {
			if p := svc.Pool(sc); p.Table.Cost != algo.NoCost && svc.uses(sc) {
				list = append(list, loaded{name, sc, keys(svc.Frontends), p.Backends, p.Table})
			}
		}
	}
	return list
}

// uses tells whether callers of some frontend get the pool of scope sc.
func (s *service) uses(sc lb.Scope) bool {
	for _, fe := range s.Frontends {
		if fe.Inside == sc || fe.Outside == sc {
			return true
		}
	}
	return false
}
