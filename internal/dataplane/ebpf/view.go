// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// View reads lbproxy's state in the kernel. It needs no agent and changes
// nothing.
type View struct {
	maps      *maps
	names     map[uint32]lb.ServiceName
	frontends map[lbFrontendKey]lbFrontend
	members   map[uint32][]uint32 // backends by service id, leaving ones too
}

// OpenView opens what is pinned below a bpffs mount; empty means /sys/fs/bpf. The error
// wraps dataplane.ErrNoState if that is nothing.
func OpenView(bpffs string) (*View, error) {
	if bpffs == "" {
		bpffs = defaultBPFFS
	}
	dir := pinDir(bpffs)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, dataplane.ErrNoState)
	}
	specs, err := mapSpecs(Sizes{})
	if err != nil {
		return nil, err
	}
	m, err := adoptMaps(dir, specs, true)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("reading lbproxy's state needs root: %w", err)
	}
	if err != nil {
		return nil, err
	}
	v := &View{maps: m}
	if err := v.load(); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

// Close releases the view.
func (v *View) Close() error {
	v.maps.close()
	return nil
}

// load reads names and frontends and sorts backends by Service.
func (v *View) load() error {
	v.names = map[uint32]lb.ServiceName{}
	v.frontends = map[lbFrontendKey]lbFrontend{}
	v.members = map[uint32][]uint32{}
	var id uint32
	var name serviceName
	it := v.maps.names().Iterate()
	for it.Next(&id, &name) {
		n, err := name.parse()
		if err != nil {
			return fmt.Errorf("map %s: id %d: %w", mapServiceNames, id, err)
		}
		v.names[id] = n
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read map %s: %w", mapServiceNames, err)
	}
	var key lbFrontendKey
	var fe lbFrontend
	it = v.maps.frontends().Iterate()
	for it.Next(&key, &fe) {
		v.frontends[key] = fe
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read map %s: %w", lbMapFrontends, err)
	}
	for i, be := range v.maps.backends {
		if be.State != uint8(lbBackendStateBACKEND_FREE) {
			v.members[be.Service] = append(v.members[be.Service], uint32(i))
		}
	}
	return nil
}

// Services returns every Service, sorted by name.
func (v *View) Services() ([]dataplane.ServiceView, error) {
	ids := make([]uint32, 0, len(v.names))
	for id := range v.names {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b uint32) int { return v.names[a].Compare(v.names[b]) })
	views := make([]dataplane.ServiceView, 0, len(ids))
	for _, id := range ids {
		views = append(views, v.service(id))
	}
	return views, nil
}

func (v *View) service(id uint32) dataplane.ServiceView {
	return dataplane.ServiceView{
		Name:      v.names[id].String(),
		Algorithm: v.maps.head(id, lb.ScopeCluster).name,
		Kind:      v.kind(id),
		Frontends: v.frontendViews(id),
		Backends:  v.backendViews(id, lb.ScopeCluster),
		Rejected:  atomic.LoadUint64(&v.maps.states[id].Rejected),
	}
}

// kindNames are the kinds in words.
var kindNames = map[algo.Kind]string{
	algo.None: "none", algo.Rand: "random", algo.Seq: "sequence", algo.Hash: "hash",
	algo.Two: "two", algo.Least: "least", algo.Few: "few",
}

// kind says how the Service's cluster pool is read.
func (v *View) kind(id uint32) string { return kindNames[v.maps.head(id, lb.ScopeCluster).kind()] }

func (v *View) frontendViews(id uint32) []dataplane.FrontendView {
	var views []dataplane.FrontendView
	for key, fe := range v.frontends {
		if fe.Service == id {
			views = append(views, dataplane.FrontendView{
				Address: frontendFrom(key).String(),
				Type:    lb.FrontendType(fe.Type).String(),
				Flags:   flagNames(fe.Flags),
			})
		}
	}
	slices.SortFunc(views, func(a, b dataplane.FrontendView) int {
		return cmp.Or(strings.Compare(a.Type, b.Type), strings.Compare(a.Address, b.Address))
	})
	return views
}

// flagNames spells enum frontend_flags.
func flagNames(flags uint8) (names []string) {
	for _, f := range []struct {
		bit  lbFrontendFlags
		name string
	}{
		{lbFrontendFlagsFE_INSIDE_LOCAL, "inside-local"},
		{lbFrontendFlagsFE_OUTSIDE_LOCAL, "outside-local"},
		{lbFrontendFlagsFE_MASQ_OFFCLUSTER, "masquerade-off-cluster"},
		{lbFrontendFlagsFE_MASQ_ALWAYS, "masquerade"},
		{lbFrontendFlagsFE_RANGED, "source-ranges"},
		{lbFrontendFlagsFE_AFFINITY, "affinity"},
	} {
		if flags&uint8(f.bit) != 0 {
			names = append(names, f.name)
		}
	}
	return names
}

// backendViews returns a Service's backends, sorted by address. What is expected of
// them is that of the pool sc.
func (v *View) backendViews(id uint32, sc lb.Scope) []dataplane.BackendView {
	cluster, local := v.maps.pool(id, lb.ScopeCluster), v.maps.pool(id, lb.ScopeLocal)
	views := make([]dataplane.BackendView, 0, len(v.members[id]))
	var total uint64
	ids := slices.Clone(v.members[id])
	slices.SortFunc(ids, func(a, b uint32) int { return v.maps.addrPort(a).Compare(v.maps.addrPort(b)) })
	place := map[uint32]int{}
	_, table, slots := v.maps.table(id, sc)
	for i, s := range slots {
		place[s.Backend] = i
	}
	shares := algo.Shares(table)
	for _, b := range ids {
		view := v.backend(b)
		view.Pools = poolNames(contains(cluster, b), contains(local, b))
		if i, ok := place[b]; ok && i < len(shares) {
			view.Expected = shares[i]
			view.Starting = table.Factors != nil && table.Factors[i] >= factorStart
			if table.Cost != algo.NoCost {
				view.Cost = v.maps.costOf(table, i, b)
			}
		}
		total += view.Opened
		views = append(views, view)
	}
	for i := range views {
		if total > 0 {
			views[i].Share = float64(views[i].Opened) / float64(total)
		}
	}
	return views
}

func (v *View) backend(id uint32) dataplane.BackendView {
	st := &v.maps.stats[id]
	closed := atomic.LoadUint64(&st.Closed) // before opened: live is never negative
	view := dataplane.BackendView{
		Address: v.maps.addrPort(id).String(),
		State:   "active",
		Opened:  atomic.LoadUint64(&st.Opened),
		Closed:  closed,
		Failed:  uint64(atomic.LoadUint32(&st.Failed)),

		Weight:        uint16(v.maps.weights[id]),
		LatencyMicros: v.maps.latencyOf(id),
	}
	view.Live = view.Opened - closed
	if v.maps.backends[id].State > uint8(lbBackendStateBACKEND_ACTIVE) {
		view.State = "leaving"
	} else if v.maps.suspectFor(id) > 0 {
		view.State, view.Suspect = "suspect", true
	}
	return view
}

func contains(slots []lbSlot, id uint32) bool {
	return slices.ContainsFunc(slots, func(s lbSlot) bool { return s.Backend == id })
}

func poolNames(cluster, local bool) string {
	switch {
	case cluster && local:
		return "both"
	case cluster:
		return "cluster"
	case local:
		return "local"
	}
	return "none"
}

// Connections returns at most limit connections of the packet path, in the
// table's order; 0 means all.
func (v *View) Connections(limit int) ([]dataplane.ConnectionView, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return nil, err
	}
	var views []dataplane.ConnectionView
	var t lbTuple
	var c lbConn
	it := v.maps.byName[lbMapConns].Iterate()
	for it.Next(&t, &c) {
		if c.Flags&uint32(lbConnFlagsCONN_FORWARD) == 0 {
			continue
		}
		idle := time.Duration(now.Nano()-int64(c.Last)) * time.Nanosecond
		views = append(views, dataplane.ConnectionView{
			Proto:    lb.Proto(t.Proto).String(),
			Client:   addrPortOf(t.Saddr, t.Sport).String(),
			Frontend: addrPortOf(t.Daddr, t.Dport).String(),
			Backend:  addrPortOf(c.Addr, c.Port).String(),
			State:    connState(c.State),
			Idle:     max(0, idle).Truncate(time.Second),
		})
		if len(views) == limit {
			return views, nil
		}
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) { // the table changes
		return nil, fmt.Errorf("read map %s: %w", lbMapConns, err)
	}
	return views, nil
}

func connState(s uint32) string {
	switch {
	case s&uint32(lbConnStateCONN_CLOSED) != 0:
		return "closed"
	case s&uint32(lbConnStateCONN_FIN_CLIENT|lbConnStateCONN_FIN_BACKEND) != 0:
		return "closing"
	case s&uint32(lbConnStateCONN_REPLIED) != 0:
		return "established"
	}
	return "opening"
}
