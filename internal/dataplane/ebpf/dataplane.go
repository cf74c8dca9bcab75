// SPDX-License-Identifier: Apache-2.0

// Package ebpf is the dataplane that balances in the kernel: programs on a
// cgroup translate sockets when they connect, programs on network devices serve
// everybody else. See docs/ARCHITECTURE.md for the path of a packet and for the
// tables.
package ebpf

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

const defaultBPFFS = "/sys/fs/bpf"

// ErrRunning is returned by Open while another process serves the same cgroup or
// uses the same pins.
var ErrRunning = errors.New("another lbproxy is running")

// Options say where a Dataplane lives and what belongs to the cluster.
type Options struct {
	CgroupRoot string       // a directory of a cgroup v2 mount; empty: the mount's root
	BPFFS      string       // a bpffs mount; empty: /sys/fs/bpf
	NodeName   string       // makes nodes start their turns at different backends
	NodeAddrs  []netip.Addr // the first of each family is whom sockets of this node count as; none: the Node's, else their first device's
	HashSeed   uint64       // of hashes of connections; the same on every node
	Devices    []string     // patterns of names; none: every device but loopback
	Local      lb.LocalDetector
	NodePorts  lb.NodePortAddresses
	Sizes      Sizes
	Log        *slog.Logger
}

// orDefault fills what was left out.
func (o Options) orDefault() (Options, error) {
	if o.BPFFS == "" {
		o.BPFFS = defaultBPFFS
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.CgroupRoot == "" {
		root, err := cgroupMount("/proc/mounts")
		if err != nil {
			return o, err
		}
		o.CgroupRoot = root
	}
	return o, nil
}

// Dataplane is lbproxy's state in the kernel of one node.
type Dataplane struct {
	opts  Options
	locks []*os.File
	maps  *maps
	progs programs

	killer *staleKiller

	suspicion suspicion

	wake  chan struct{} // capacity 1: something was retired
	look  chan struct{} // capacity 1: the Node changed
	gone  chan struct{} // capacity 1: Syncs left something behind
	flush chan struct{} // capacity 1: a sweep is due
	node  atomic.Pointer[lb.Node]
	addrs *dataplane.Addresses

	attached map[int]device // by index; used by Open, then by Run, as is layer3
	layer3   programs       // nil: not needed yet

	reclaiming sync.Mutex // held while a grace period passes

	mu         sync.Mutex // guards everything below
	services   map[lb.ServiceName]*service
	frontends  map[lbFrontendKey]lbFrontend
	clusterIPs clusterIPs
	ajar       map[lbAddr]lb.ServiceName // cluster IPs whose other ports are not refused yet
	serviceIDs *ids
	backendIDs *ids
	regions    *regions
	reserved   []region // by the change under way
	marks      marks
	retired    retired
	orphans    []orphan
	draining   map[*service]bool // those with backends that are leaving
	ripe       map[uint32]bool   // backends that left before the grace period under way
	swept      sweepResult
	recounted  recount
	past       counts  // of all backends that were freed, see begin
	complete   bool    // a full Sync was made
	translated [2]bool // netfilter translates connections to frontends of IPv4, IPv6
	unsure     [2]bool // that it does not, until complete
	left       leftovers
	cursor     cursor
}

// Open adopts what an earlier agent left below opts.BPFFS, or creates it, and
// attaches the programs, to the devices of the calling thread's network
// namespace among others. Nothing that was served before is interrupted.
// It returns an error that wraps ErrRunning if another process has it open.
func Open(opts Options) (*Dataplane, error) {
	if err := requirePrivileges(); err != nil {
		return nil, err
	}
	opts, err := opts.orDefault()
	if err != nil {
		return nil, err
	}
	if lacks := lacksForPods(); lacks != "" {
		opts.Log.Warn("the process lacks privileges", "consequence", lacks)
	}
	d, err := openState(opts)
	if err != nil {
		return nil, err
	}
	if d.progs, err = loadPrograms(d.maps, d.opts.Local); err == nil {
		d.killer, err = newStaleKiller(d.maps)
	}
	if err == nil {
		err = d.attachCgroup()
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	// Whoever waits for the first Sync has the packet path too. While devices
	// change under the listing, Run looks again.
	if err := d.lookAtDevices(); err != nil {
		opts.Log.Debug("network devices change while they are listed", "error", err)
	}
	return d, nil
}

// openState takes the locks and adopts or creates the tables.
func openState(opts Options) (_ *Dataplane, err error) {
	if err := requireFilesystems(opts); err != nil {
		return nil, err
	}
	d := &Dataplane{
		opts: opts, addrs: dataplane.NewAddresses(opts.Local, opts.NodePorts), suspicion: newSuspicion(),
		wake: make(chan struct{}, 1), look: make(chan struct{}, 1), gone: make(chan struct{}, 1), flush: make(chan struct{}, 1),
	}
	d.left.flows = true // an agent may have been killed before it looked
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if d.locks, err = lockAll(opts.CgroupRoot, opts.BPFFS); err != nil {
		return nil, err
	}
	if d.maps, err = openMaps(opts.BPFFS, opts.Sizes); err != nil {
		return nil, err
	}
	if err := d.restore(); err != nil {
		return nil, err
	}
	if d.attached, err = d.pinnedDevices(); err != nil {
		return nil, fmt.Errorf("read pinned links: %w", err)
	}
	for i, known := range d.maps.settings[0].Known { // what an earlier agent knew holds until KeepTranslated is called
		d.translated[i] = known&uint32(lbKnownKNOWN_TRANSLATED) != 0
	}
	d.syncSettings()
	return d, d.syncPodRanges()
}

// knownNode returns what the Node object says, and whether SetNode has told it. Until
// then, tables that depend on it keep what an earlier agent knew; at the first start of
// all nobody is a pod by the Node's ranges, and no NodePort is at its addresses.
func (d *Dataplane) knownNode() (lb.Node, bool) {
	if n := d.node.Load(); n != nil {
		return *n, true
	}
	return lb.Node{}, false
}

// familyIndex is 0 for IPv4 and 1 for IPv6.
func familyIndex(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// syncSettings tells the programs what they should know.
func (d *Dataplane) syncSettings() {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := fnv.New64a()
	h.Write([]byte(d.opts.NodeName))
	want := d.maps.settings[0] // what depends on the Node stays until it is told
	want.HashSeed, want.Node = d.opts.HashSeed, h.Sum64()
	for i := range want.Cluster {
		if want.Cluster[i] == (lbRange{}) {
			want.Cluster[i] = noRange
		}
	}
	node, told := d.knownNode()
	if told || !d.addrs.NodePorts().Primary {
		for i, a := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
			want.Localhost[i] = 0
			if d.addrs.NodePorts().Serves(a, node) {
				want.Localhost[i] = 1
			}
		}
	}
	if told || d.addrs.Local().Mode != lb.LocalNodeCIDR {
		for i, f := range []lb.Family{lb.IPv4, lb.IPv6} {
			want.Known[i] &^= uint32(lbKnownKNOWN_PODS)
			if d.addrs.Local().Knows(f, node) {
				want.Known[i] |= uint32(lbKnownKNOWN_PODS)
			}
		}
	}
	for i := range want.Known {
		want.Known[i] &^= uint32(lbKnownKNOWN_TRANSLATED)
		if d.translated[i] {
			want.Known[i] |= uint32(lbKnownKNOWN_TRANSLATED)
		}
	}
	addrs := d.opts.NodeAddrs
	if len(addrs) == 0 {
		addrs = node.Addrs
	}
	if len(addrs) > 0 {
		want.Host = [2]lbAddr{}
	}
	for _, a := range slices.Backward(addrs) { // the first of each family stays
		want.Host[familyIndex(a)] = addrOf(a)
	}
	if d.maps.settings[0] != want {
		d.maps.wrote()
		d.maps.settings[0] = want
	}
}

// Run follows the devices and addresses of the calling thread's network
// namespace and removes what is no longer used, until ctx is done.
func (d *Dataplane) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.janitor(ctx) })
	g.Go(func() error { return d.readSymptoms(ctx) })
	g.Go(func() error { return d.endLeftovers(ctx) })
	err := d.followDevices(ctx) // not in a goroutine: that could run in another namespace
	if err != nil {
		g.Go(func() error { return err })
	}
	return g.Wait()
}

// Close releases the Dataplane. Everything stays in the kernel and goes on.
func (d *Dataplane) Close() error {
	d.progs.close()
	d.layer3.close()
	if d.maps != nil {
		d.maps.close()
	}
	var errs []error
	if d.killer != nil {
		errs = append(errs, d.killer.close())
	}
	for _, f := range d.locks {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Writes returns how many changes of kernel state were made since Open.
func (d *Dataplane) Writes() uint64 { return d.maps.writes.Load() }

// syncPodRanges makes the table of pod ranges equal to the options.
func (d *Dataplane) syncPodRanges() error {
	table := d.maps.byName[lbMapPodRanges]
	want := map[lbPrefix]uint32{}
	node, told := d.knownNode()
	if !told && d.addrs.Local().Mode == lb.LocalNodeCIDR {
		return nil
	}
	for _, p := range d.addrs.Local().PodRanges(node) {
		want[prefixOf(p)] = 1
	}
	if err := syncTable(d.maps, table, want); err != nil {
		return fmt.Errorf("pod ranges: %w", err)
	}
	return nil
}

// syncTable makes a small hash table equal to want. If that does not fit, those of first
// do before the others, in their order.
func syncTable[K, V comparable](m *maps, table *ebpf.Map, want map[K]V, first ...K) error {
	var (
		k     K
		v     V
		stale []K
		have  = map[K]V{}
	)
	it := table.Iterate()
	for it.Next(&k, &v) {
		have[k] = v
	}
	if err := it.Err(); err != nil {
		return err
	}
	for k := range have {
		if _, ok := want[k]; !ok {
			stale = append(stale, k)
		}
	}
	for _, k := range stale { // which makes room
		if err := m.remove(table, k); err != nil {
			return err
		}
	}
	var failed error
	misfits := 0
	tried := make(map[K]bool, len(first))
	put := func(k K) {
		if old, ok := have[k]; ok && old == want[k] || tried[k] {
			return
		}
		tried[k] = true
		if err := m.put(table, k, want[k]); err != nil {
			misfits++
			failed = err
		}
	}
	for _, k := range first {
		put(k)
	}
	for k := range want {
		put(k)
	}
	if failed != nil {
		return fmt.Errorf("%d of %d entries are not stored: %w", misfits, len(want), failed)
	}
	return nil
}

// SetNode tells what the Node object says. Run takes it over.
func (d *Dataplane) SetNode(n lb.Node) {
	d.node.Store(&n)
	wake(d.look)
}

// SetAddresses tells other addresses than those of Options. Run takes them over.
func (d *Dataplane) SetAddresses(pods []netip.Prefix, nodePorts lb.NodePortAddresses) {
	d.addrs.Set(pods, nodePorts)
	wake(d.look)
}

var (
	_ dataplane.NodeSetter    = (*Dataplane)(nil)
	_ dataplane.AddressSetter = (*Dataplane)(nil)
)
