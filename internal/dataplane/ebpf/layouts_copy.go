// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"net/netip"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// What the entries of every layout say. A layout in which one of these fields means
// something else calls it otherwise; numbers of enums keep their meaning.
var (
	tupleFields = []fieldOf[lbTuple]{
		{"saddr", unsafe.Offsetof(lbTuple{}.Saddr), 16}, {"daddr", unsafe.Offsetof(lbTuple{}.Daddr), 16},
		{"sport", unsafe.Offsetof(lbTuple{}.Sport), 2}, {"dport", unsafe.Offsetof(lbTuple{}.Dport), 2},
		{"proto", unsafe.Offsetof(lbTuple{}.Proto), 1}, {"hook", unsafe.Offsetof(lbTuple{}.Hook), 1},
	}
	connFields = []fieldOf[lbConn]{
		{"addr", unsafe.Offsetof(lbConn{}.Addr), 16}, {"port", unsafe.Offsetof(lbConn{}.Port), 2},
		{"other_port", unsafe.Offsetof(lbConn{}.OtherPort), 2}, {"flags", unsafe.Offsetof(lbConn{}.Flags), 4},
		{"state", unsafe.Offsetof(lbConn{}.State), 4}, {"start", unsafe.Offsetof(lbConn{}.Start), 4},
		{"last", unsafe.Offsetof(lbConn{}.Last), 8},
	}
	flowKeyFields = []fieldOf[lbUdpFlowKey]{
		{"cookie", unsafe.Offsetof(lbUdpFlowKey{}.Cookie), 8}, {"addr", unsafe.Offsetof(lbUdpFlowKey{}.Addr), 16},
		{"port", unsafe.Offsetof(lbUdpFlowKey{}.Port), 2}, {"direction", unsafe.Offsetof(lbUdpFlowKey{}.Direction), 2},
	}
	flowFields = []fieldOf[lbUdpFlow]{
		{"last", unsafe.Offsetof(lbUdpFlow{}.Last), 8}, {"addr", unsafe.Offsetof(lbUdpFlow{}.Addr), 16},
		{"port", unsafe.Offsetof(lbUdpFlow{}.Port), 2}, {"closed", unsafe.Offsetof(lbUdpFlow{}.Closed), 4},
	}
)

// convertBoth converts keys and values.
func convertBoth[K, V any](keys, values entries, kf []fieldOf[K], vf []fieldOf[V]) (ks []K, vs []V, err error) {
	if ks, err = convert(keys, kf); err == nil {
		vs, err = convert(values, vf)
	}
	return ks, vs, err
}

// copier copies what another layout has. d.mu is held as long as it is used.
type copier struct {
	d      *Dataplane
	byID   map[uint32]*service
	conns  map[lbTuple]lbConn // as they were copied
	flows  map[lbUdpFlowKey]bool
	copied int // entries that were not there
}

func (d *Dataplane) newCopier() *copier {
	c := &copier{d: d, byID: map[uint32]*service{}, conns: map[lbTuple]lbConn{}, flows: map[lbUdpFlowKey]bool{}}
	for _, svc := range d.services {
		c.byID[svc.id] = svc
	}
	return c
}

// copyAll copies what was not copied before, or has changed since. The other layout's
// programs serve if serves is set: then what it has is right, and not what ours is.
func (c *copier) copyAll(old *layoutTables, serves bool) error {
	keys, values, err := old.read(lbMapConns)
	if err != nil {
		return err
	}
	conns, states, err := convertBoth(keys, values, tupleFields, connFields)
	if err != nil {
		return err
	}
	for _, forward := range []bool{false, true} { // those that hold the state come last, as when a program makes them
		for i := range conns {
			if (states[i].Flags&uint32(lbConnFlagsCONN_FORWARD) != 0) == forward {
				c.copyConn(conns[i], states[i], forward, serves)
			}
		}
	}
	if keys, values, err = old.read(lbMapUdpFlows); err != nil {
		return err
	}
	flows, ends, err := convertBoth(keys, values, flowKeyFields, flowFields)
	if err != nil {
		return err
	}
	for i := range flows {
		c.copyFlow(flows[i], ends[i])
	}
	return nil
}

// copyConn copies one entry of a connection.
func (c *copier) copyConn(key lbTuple, old lbConn, forward, serves bool) {
	if last, ok := c.conns[key]; ok && sameConn(last, old) && last.State == old.State {
		return
	}
	c.conns[key] = old
	if forward {
		vip := addrPortOf(key.Daddr, key.Dport)
		old.Backend, old.Gen = c.backendAt(lb.FrontendKey{Addr: vip, Proto: lb.Proto(key.Proto)}, addrPortOf(old.Addr, old.Port))
	} else {
		old.Flags &^= uint32(lbConnFlagsCONN_SIGNAL) // whose time it is was not copied
	}
	table := c.d.maps.byName[lbMapConns]
	var ours lbConn
	if table.Lookup(key, &ours) != nil {
		c.insert(lbMapConns, key, old, old.Backend, forward && isOpen(old))
		return
	}
	same := sameConn(ours, old)
	if !same && !serves || same && ours.State|old.State == ours.State {
		return
	}
	if same { // bits are only ever set
		old.State |= ours.State
		old.Backend, old.Gen, old.Last = ours.Backend, ours.Gen, max(ours.Last, old.Last)
	}
	c.d.maps.wrote()
	if table.Update(key, old, ebpf.UpdateAny) != nil || !forward {
		return
	}
	if isOpen(ours) && (!same || !isOpen(old)) && ours.Backend < c.d.backendIDs.next { // the kernel says whose it is
		atomic.AddUint64(&c.d.maps.stats[ours.Backend].Closed, 1)
	}
	if !same && isOpen(old) {
		atomic.AddUint64(&c.d.maps.stats[old.Backend].Opened, 1)
	}
}

// sameConn tells whether two entries of one key translate alike.
func sameConn(a, b lbConn) bool {
	return a.Addr == b.Addr && a.Port == b.Port && a.OtherPort == b.OtherPort
}

func isOpen(c lbConn) bool { return c.State&uint32(lbConnStateCONN_CLOSED) == 0 }

// copyFlow copies half a flow of an unconnected UDP socket.
func (c *copier) copyFlow(key lbUdpFlowKey, old lbUdpFlow) {
	if c.flows[key] {
		return
	}
	c.flows[key] = true
	vip, backend := addrPortOf(key.Addr, key.Port), addrPortOf(old.Addr, old.Port)
	toVIP := key.Direction == uint16(lbUdpDirectionUDP_TO_VIP)
	if !toVIP {
		vip, backend = backend, vip
	}
	old.Backend, old.Gen = c.backendAt(lb.FrontendKey{Addr: vip, Proto: lb.UDP}, backend)
	c.insert(lbMapUdpFlows, key, old, old.Backend, toVIP && old.Closed == 0)
}

// insert adds an entry that is not there, and counts what is open for its backend. One that
// does not fit is lost.
func (c *copier) insert(table string, key, value any, backend uint32, open bool) {
	m := c.d.maps
	m.wrote()
	if open { // before it can end
		atomic.AddUint64(&m.stats[backend].Opened, 1)
	}
	err := m.byName[table].Update(key, value, ebpf.UpdateNoExist)
	switch {
	case err == nil:
		c.copied++
	case open:
		atomic.AddUint64(&m.stats[backend].Opened, ^uint64(0))
	}
}

// backendAt returns the backend of a frontend's Service with an address, and its
// generation; 0, which counts for nobody, if there is none.
func (c *copier) backendAt(at lb.FrontendKey, backend netip.AddrPort) (id, gen uint32) {
	v, ok := c.d.frontends[frontendKeyOf(at)]
	if !ok {
		at.Addr = netip.AddrPortFrom(lb.FamilyOf(at.Addr.Addr()).Unspecified(), at.Addr.Port())
		if v, ok = c.d.frontends[frontendKeyOf(at)]; !ok {
			return 0, 0
		}
	}
	svc := c.byID[v.Service]
	if svc == nil {
		return 0, 0
	}
	for _, ids := range [][]uint32{svc.ids[lb.ScopeCluster], svc.ids[lb.ScopeLocal], svc.leaving} {
		for _, id := range ids {
			if c.d.maps.isAt(id, backend) {
				return id, c.d.maps.backends[id].Gen
			}
		}
	}
	return 0, 0
}
