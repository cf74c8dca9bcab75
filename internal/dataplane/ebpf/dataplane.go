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

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"

	"github.com/lbproxy/lbproxy/internal/lb"
)

const defaultBPFFS = "/sys/fs/bpf"

// ErrRunning is returned by Open while another process serves the same cgroup or
// uses the same pins.
var ErrRunning = errors.New("another lbproxy is running")

// Options say where a Dataplane lives and what belongs to the cluster.
type Options struct {
	CgroupRoot        string         // a directory of a cgroup v2 mount; empty: the mount's root
	BPFFS             string         // a bpffs mount; empty: /sys/fs/bpf
	NodeName          string         // makes nodes start their turns at different backends
	NodeAddrs         []netip.Addr   // the first of each family is whom sockets of this node are hashed as; none: their first device's
	HashSeed          uint64         // of hashes of connections; the same on every node
	Devices           []string       // patterns of names; none: every device but loopback
	PodRanges         []netip.Prefix // addresses of pods; none: callers are never known as pods
	NodePortAddresses []netip.Prefix // NodePorts answer at node addresses in these; none: at all
	Sizes             Sizes
	Log               *slog.Logger
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
	wake  chan struct{} // capacity 1: something was retired

	attached map[int]device // by index; used by Open, then by Run

	reclaiming sync.Mutex // held while a grace period passes

	mu         sync.Mutex // guards everything below
	services   map[lb.ServiceName]*service
	frontends  map[lbFrontendKey]lbFrontend
	serviceIDs *ids
	backendIDs *ids
	regions    *regions
	reserved   []region // by the change under way
	retired    retired
	orphans    []orphan
	draining   map[*service]bool // those with backends that are leaving
	ripe       map[uint32]bool   // backends that left before the grace period under way
	swept      sweepResult
	recounted  recount
	complete   bool // a full Sync was made
}

// Open adopts what an earlier agent left below opts.BPFFS, or creates it, and
// attaches the programs, to the devices of the calling thread's network
// namespace among others. Nothing that was served before is interrupted.
// It returns an error that wraps ErrRunning if another process has it open.
func Open(opts Options) (*Dataplane, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the eBPF dataplane needs root (CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN)")
	}
	opts, err := opts.orDefault()
	if err != nil {
		return nil, err
	}
	d, err := openState(opts)
	if err != nil {
		return nil, err
	}
	if d.progs, err = loadPrograms(d.maps); err == nil {
		err = d.attachCgroup()
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	// Whoever waits for the first Sync has the packet path too. While devices
	// change under the listing, Run looks again.
	if err := d.lookAtDevices(); err != nil {
		opts.Log.Debug("network devices change while they are listed", "err", err)
	}
	return d, nil
}

// openState takes the locks and adopts or creates the tables.
func openState(opts Options) (_ *Dataplane, err error) {
	if err := requireFilesystems(opts); err != nil {
		return nil, err
	}
	d := &Dataplane{opts: opts, wake: make(chan struct{}, 1)}
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
	d.syncSettings()
	return d, d.syncPodRanges()
}

// syncSettings tells the programs what they should know.
func (d *Dataplane) syncSettings() {
	h := fnv.New64a()
	h.Write([]byte(d.opts.NodeName))
	want := lbSettings{HashSeed: d.opts.HashSeed, Node: h.Sum64()}
	for _, a := range slices.Backward(d.opts.NodeAddrs) { // the first of each family stays
		i := 0
		if lb.FamilyOf(a) == lb.IPv6 {
			i = 1
		}
		want.Host[i] = addrOf(a)
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
	err := d.followDevices(ctx) // not in a goroutine: that could run in another namespace
	if err != nil {
		g.Go(func() error { return err })
	}
	return g.Wait()
}

// Close releases the Dataplane. Everything stays in the kernel and goes on.
func (d *Dataplane) Close() error {
	d.progs.close()
	if d.maps != nil {
		d.maps.close()
	}
	var errs []error
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
	for _, p := range d.opts.PodRanges {
		want[prefixOf(p)] = 1
	}
	if err := syncTable(d.maps, table, want); err != nil {
		return fmt.Errorf("pod ranges: %w", err)
	}
	return nil
}

// syncTable makes a small hash table equal to want.
func syncTable[K, V comparable](m *maps, table *ebpf.Map, want map[K]V) error {
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
	for k, v := range want {
		if old, ok := have[k]; ok && old == v {
			continue
		}
		if err := m.put(table, k, v); err != nil {
			return err
		}
	}
	for _, k := range stale {
		if err := m.remove(table, k); err != nil {
			return err
		}
	}
	return nil
}
