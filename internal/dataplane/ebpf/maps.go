// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// layoutVersion names the directory of the pins. It changes with the layout of
// any map, so that two versions of lbproxy never share one by mistake.
const layoutVersion = "v5"

// nameLen is the size of a value of service_names: the longest name that
// lb.ServiceName.String can make of Kubernetes names, rounded up.
const nameLen = 160

// Maps that no program reads: what people call a service, and what the weights of
// backends were that its table was made from.
const (
	mapServiceNames   = "service_names"
	mapBackendWeights = "backend_weights"
)

// Sizes are the numbers of entries of the kernel's tables. They are fixed when
// the tables are created; adopting pinned tables keeps theirs.
type Sizes struct {
	Services  uint32 // Service ports, each family by itself
	Frontends uint32
	Backends  uint32 // endpoints, once for each Service port they serve
	Slots     uint32 // places in tables: 8 and more for each pool, see docs/ARCHITECTURE.md
	Conns     uint32 // table entries: 2 for a connection, 4 if masqueraded
	Flows     uint32 // table entries: 2 for a flow of an unconnected UDP socket

	Affinities   uint32 // clients of Services with session affinity; the oldest is forgotten
	SourceRanges uint32 // of load balancers, of all Services
}

// DefaultSizes serve 10,000 Services with 10 endpoints and room to spare; the
// arrays take about 40 MB of kernel memory, the hash tables what they hold.
var DefaultSizes = Sizes{
	Services:  1 << 16,
	Frontends: 1 << 18,
	Backends:  1 << 18,
	Slots:     1 << 21,
	Conns:     1 << 20,
	Flows:     1 << 18,

	Affinities:   1 << 17,
	SourceRanges: 1 << 16,
}

// orDefault fills zeros from DefaultSizes.
func (s Sizes) orDefault() Sizes {
	for _, p := range []struct{ v, d *uint32 }{
		{&s.Services, &DefaultSizes.Services},
		{&s.Frontends, &DefaultSizes.Frontends},
		{&s.Backends, &DefaultSizes.Backends},
		{&s.Slots, &DefaultSizes.Slots},
		{&s.Conns, &DefaultSizes.Conns},
		{&s.Flows, &DefaultSizes.Flows},
		{&s.Affinities, &DefaultSizes.Affinities},
		{&s.SourceRanges, &DefaultSizes.SourceRanges},
	} {
		if *p.v == 0 {
			*p.v = *p.d
		}
	}
	return s
}

// entries returns the size of each map that is sized by s.
func (s Sizes) entries() map[string]uint32 {
	return map[string]uint32{
		lbMapServices:      s.Services,
		lbMapServiceStates: s.Services,
		mapServiceNames:    s.Services,
		lbMapFrontends:     s.Frontends,
		lbMapBackends:      s.Backends,
		lbMapBackendStats:  s.Backends,
		lbMapSuspects:      s.Backends,
		lbMapRecounts:      s.Backends,
		mapBackendWeights:  s.Backends,
		lbMapSlots:         s.Slots,
		lbMapConns:         s.Conns,
		lbMapUdpFlows:      s.Flows,
		lbMapAffinities:    s.Affinities,
		lbMapSourceRanges:  s.SourceRanges,
	}
}

// serviceName is a value of service_names: a name padded with zeros.
type serviceName [nameLen]byte

func serviceNameOf(n lb.ServiceName) (v serviceName, err error) {
	if s := n.String(); copy(v[:], s) < len(s) {
		return v, fmt.Errorf("service name of %d bytes: want at most %d", len(s), nameLen)
	}
	return v, nil
}

func (v serviceName) parse() (lb.ServiceName, error) {
	return lb.ParseServiceName(unix.ByteSliceToString(v[:]))
}

// maps are the kernel's tables and views of those that are mapped into memory.
// Views are written by one goroutine; counters are read by any.
type maps struct {
	byName map[string]*ebpf.Map
	dir    string // where they are pinned

	services []lbService
	states   []lbServiceState
	slots    []lbSlot
	backends []lbBackend
	stats    []lbBackendStats
	suspects []lbSuspect
	recounts []uint64
	weights  []uint64
	settings []lbSettings

	symptomsLost []uint64 // one element

	grace   gracePeriod
	windows [owners][]*window
	writes  atomic.Uint64  // changes of pinned state, by system call or store
	before  func(n uint64) // if set, called before write n; tests stop there
}

// wrote counts a change that is about to be made.
func (m *maps) wrote() {
	n := m.writes.Add(1)
	if m.before != nil {
		m.before(n)
	}
}

func (m *maps) frontends() *ebpf.Map { return m.byName[lbMapFrontends] }
func (m *maps) names() *ebpf.Map     { return m.byName[mapServiceNames] }
func (m *maps) ranges() *ebpf.Map    { return m.byName[lbMapSourceRanges] }

// put updates a hash table and counts the write.
func (m *maps) put(table *ebpf.Map, key, value any) error {
	m.wrote()
	err := table.Put(key, value)
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) { // the latter of a trie
		return fmt.Errorf("map %s has its %d entries: %w", mapName(table), table.MaxEntries(), dataplane.ErrFull)
	}
	return err
}

// remove deletes a key; a missing one is not an error.
func (m *maps) remove(table *ebpf.Map, key any) error {
	m.wrote()
	if err := table.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

func mapName(m *ebpf.Map) string {
	info, err := m.Info()
	if err != nil {
		return "?"
	}
	return info.Name
}

// mapSpecs returns the specification of every map, sized by s.
func mapSpecs(s Sizes) (map[string]*ebpf.MapSpec, error) {
	spec, err := loadLb()
	if err != nil {
		return nil, err
	}
	entries := s.orDefault().entries()
	specs := map[string]*ebpf.MapSpec{}
	for name, ms := range spec.Maps {
		if name[0] != '.' { // constants belong to the programs
			specs[name] = ms
		}
	}
	specs[mapServiceNames] = &ebpf.MapSpec{
		Name:      mapServiceNames,
		Type:      ebpf.Hash,
		KeySize:   4,
		ValueSize: nameLen,
		Flags:     unix.BPF_F_NO_PREALLOC,
	}
	specs[mapBackendWeights] = &ebpf.MapSpec{
		Name:      mapBackendWeights,
		Type:      ebpf.Array,
		KeySize:   4,
		ValueSize: 8,
		Flags:     unix.BPF_F_MMAPABLE,
	}
	for name, n := range entries {
		specs[name].MaxEntries = n
	}
	return specs, nil
}

// pinDir is where the maps of this layout are pinned below a bpffs mount.
func pinDir(bpffs string) string { return filepath.Join(bpffs, "lbproxy", layoutVersion) }

// openMaps adopts the maps pinned below bpffs or, when there are none, creates
// all of them. Creation is atomic: a directory that exists is complete.
func openMaps(bpffs string, s Sizes) (*maps, error) {
	dir := pinDir(bpffs)
	specs, err := mapSpecs(s)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		if err := createMaps(dir, specs); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	return adoptMaps(dir, specs, false)
}

// createMaps makes and pins every map in a directory of its own and renames it
// to dir when all are there.
func createMaps(dir string, specs map[string]*ebpf.MapSpec) error {
	tmp := dir + "-new"                       // bpffs allows no dots
	if err := os.RemoveAll(tmp); err != nil { // of a start that was killed
		return err
	}
	for _, sub := range []string{"maps", "links"} {
		if err := os.MkdirAll(filepath.Join(tmp, sub), 0o755); err != nil {
			return err
		}
	}
	for name, spec := range specs {
		m, err := ebpf.NewMap(spec)
		if err != nil {
			return fmt.Errorf("create map %s with %d entries: %w", name, spec.MaxEntries, err)
		}
		err = m.Pin(filepath.Join(tmp, "maps", name))
		m.Close()
		if err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	return os.Rename(tmp, dir)
}

// adoptMaps opens the pinned maps. Sizes may differ from specs; anything else
// that differs is an error. Arrays are mapped for reading only if readOnly is
// set.
func adoptMaps(dir string, specs map[string]*ebpf.MapSpec, readOnly bool) (_ *maps, err error) {
	m := &maps{byName: map[string]*ebpf.Map{}, dir: dir}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	for name, spec := range specs {
		pm, err := ebpf.LoadPinnedMap(filepath.Join(dir, "maps", name), nil)
		if err != nil {
			return nil, fmt.Errorf("open pinned map %s: %w", name, err)
		}
		m.byName[name] = pm
		if pm.Type() != spec.Type || pm.KeySize() != spec.KeySize || pm.ValueSize() != spec.ValueSize {
			return nil, fmt.Errorf("pinned map %s has another layout; run lbproxy cleanup first", name)
		}
	}
	if !readOnly {
		if m.grace, err = newGracePeriod(); err != nil {
			return nil, err
		}
	}
	return m, m.mapAll(readOnly)
}

// mapAll maps the arrays into memory.
func (m *maps) mapAll(readOnly bool) (err error) {
	if m.services, err = mapArray[lbService](m, lbMapServices, ofService, readOnly); err != nil {
		return err
	}
	if m.states, err = mapArray[lbServiceState](m, lbMapServiceStates, ofService, readOnly); err != nil {
		return err
	}
	if m.slots, err = mapArray[lbSlot](m, lbMapSlots, ofSlot, readOnly); err != nil {
		return err
	}
	if m.backends, err = mapArray[lbBackend](m, lbMapBackends, ofBackend, readOnly); err != nil {
		return err
	}
	if m.stats, err = mapArray[lbBackendStats](m, lbMapBackendStats, ofBackend, readOnly); err != nil {
		return err
	}
	if m.suspects, err = mapArray[lbSuspect](m, lbMapSuspects, ofBackend, readOnly); err != nil {
		return err
	}
	if m.symptomsLost, err = mapArray[uint64](m, lbMapSymptomsLost, ofNode, readOnly); err != nil {
		return err
	}
	if m.weights, err = mapArray[uint64](m, mapBackendWeights, ofBackend, readOnly); err != nil {
		return err
	}
	if m.recounts, err = mapArray[uint64](m, lbMapRecounts, ofBackend, readOnly); err != nil {
		return err
	}
	m.settings, err = mapArray[lbSettings](m, lbMapSettings, ofNode, readOnly)
	return err
}

// mapArray maps one array map as a slice of its values.
func mapArray[T any](m *maps, name string, o owner, readOnly bool) ([]T, error) {
	bm := m.byName[name]
	n := int(bm.MaxEntries())
	size := n * int(unsafe.Sizeof(*new(T)))
	prot := unix.PROT_READ | unix.PROT_WRITE
	if readOnly {
		prot = unix.PROT_READ
	}
	mem, err := unix.Mmap(bm.FD(), 0, size, prot, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s into memory: %w", name, err)
	}
	m.windows[o] = append(m.windows[o], &window{fd: bm.FD(), mem: mem, element: int(unsafe.Sizeof(*new(T))), mapped: size})
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(mem))), n), nil
}

// close releases the maps and views; pins stay.
func (m *maps) close() {
	for o, list := range m.windows {
		for _, w := range list {
			_ = unix.Munmap(w.mem) // cannot fail for what Mmap returned
		}
		m.windows[o] = nil
	}
	m.grace.close()
	for _, bm := range m.byName {
		bm.Close()
	}
}

// storePool commits a pool: from now on new connections use the region.
func (m *maps) storePool(id uint32, sc lb.Scope, word uint64) {
	p := &m.services[id].Pool[sc]
	if *p == word {
		return
	}
	m.wrote()
	atomic.StoreUint64(p, word)
}

// liveOf returns the connections of backend id that have not ended. Closed is
// read first: the sum never appears smaller than it is.
func (m *maps) liveOf(id uint32) uint64 {
	s := &m.stats[id]
	closed := atomic.LoadUint64(&s.Closed)
	return atomic.LoadUint64(&s.Opened) - closed
}

// addrPort returns the address of a backend.
func (m *maps) addrPort(id uint32) netip.AddrPort {
	be := &m.backends[id]
	return addrPortOf(be.Addr, be.Port)
}

// isAt tells whether backend id has the address a.
func (m *maps) isAt(id uint32, a netip.AddrPort) bool {
	be := &m.backends[id]
	return *(*[16]byte)(unsafe.Pointer(&be.Addr)) == a.Addr().As16() && be.Port == swap16(a.Port())
}

// head returns the head of a Service's pool; without a region it is empty.
func (m *maps) head(id uint32, sc lb.Scope) head {
	base := uint32(atomic.LoadUint64(&m.services[id].Pool[sc]))
	if base == 0 {
		return head{}
	}
	return headOf(m.slots[base:])
}

// pool returns the backends of a Service's pool.
func (m *maps) pool(id uint32, sc lb.Scope) []lbSlot {
	word := atomic.LoadUint64(&m.services[id].Pool[sc])
	if poolLen(word) == 0 {
		return nil
	}
	return m.slots[uint32(word)+headSlots:][:poolLen(word)]
}
