// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// clusterIPs counts the frontends at each cluster IP. As long as there is one, an entry
// without port and protocol stands in the table for the ports that there are not. It
// comes last: until all frontends are there, another dataplane may serve those that are
// missing.
type clusterIPs map[lbAddr]int

// unknownKey is the key of that entry.
func unknownKey(a lbAddr) lbFrontendKey { return lbFrontendKey{Addr: a} }

func unknownValue(a lbAddr) lbFrontend {
	return lbFrontend{
		Flags: uint8(lbFrontendFlagsFE_UNKNOWN),
		Type:  uint8(lb.ClusterIP),
		Check: checkOf(unknownKey(a)),
	}
}

// isClusterIP tells whether a frontend is at a cluster IP.
func isClusterIP(v lbFrontend) bool {
	return v.Type == uint8(lb.ClusterIP) && v.Flags&uint8(lbFrontendFlagsFE_UNKNOWN) == 0
}

// putFrontend writes one frontend.
func (d *Dataplane) putFrontend(key lbFrontendKey, v lbFrontend) error {
	old, had := d.frontends[key]
	err := d.maps.put(d.maps.frontends(), key, v)
	if err == nil {
		d.frontends[key] = v
		d.countClusterIP(key.Addr, v, 1)
		if had {
			d.countClusterIP(key.Addr, old, -1)
			d.left.flows = d.left.flows || old.Service != v.Service && key.Proto == uint8(lb.UDP)
		}
	}
	return errors.Join(err, d.forgetClusterIP(key.Addr))
}

// removeFrontend removes one frontend, and the entry for its address's other ports if
// it was the last one there.
func (d *Dataplane) removeFrontend(key lbFrontendKey) error {
	if err := d.maps.remove(d.maps.frontends(), key); err != nil {
		return err
	}
	old, had := d.frontends[key]
	delete(d.frontends, key)
	if !had {
		return nil
	}
	if key.Proto == uint8(lb.UDP) {
		d.left.flows = true // they lead nowhere
	}
	d.countClusterIP(key.Addr, old, -1)
	return d.forgetClusterIP(key.Addr)
}

func (d *Dataplane) countClusterIP(a lbAddr, v lbFrontend, n int) {
	if !isClusterIP(v) {
		return
	}
	if d.clusterIPs[a] += n; d.clusterIPs[a] == 0 {
		delete(d.clusterIPs, a)
	}
}

// forgetClusterIP removes the entry of an address that has no frontend.
func (d *Dataplane) forgetClusterIP(a lbAddr) error {
	if _, there := d.frontends[unknownKey(a)]; !there || d.clusterIPs[a] > 0 {
		return nil
	}
	if err := d.maps.remove(d.maps.frontends(), unknownKey(a)); err != nil {
		return fmt.Errorf("remove cluster IP %s: %w", netipOf(a), err)
	}
	delete(d.frontends, unknownKey(a))
	return nil
}

// noteClusterIPs takes note of cluster IPs of a Service whose other ports are not refused.
func (d *Dataplane) noteClusterIPs(svc *dataplane.Service) {
	for _, f := range svc.Frontends {
		a := addrOf(f.Addr.Addr())
		if _, refused := d.frontends[unknownKey(a)]; f.Type == lb.ClusterIP && !refused {
			d.ajar[a] = svc.Name
		}
	}
}

// closeClusterIPs makes other ports of the cluster IPs that were noted refused, once all
// of their frontends are there. What fails costs a Service that has the address no more
// than that.
func (d *Dataplane) closeClusterIPs(failed *dataplane.SyncError) (full bool) {
	for a, name := range d.ajar {
		delete(d.ajar, a)
		if d.clusterIPs[a] == 0 {
			continue
		}
		if err := d.maps.put(d.maps.frontends(), unknownKey(a), unknownValue(a)); err != nil {
			failed.Fail(name, fmt.Errorf("service %s: other ports of cluster IP %s are not refused: %w", name, netipOf(a), err))
			full = full || errors.Is(err, dataplane.ErrFull)
			continue
		}
		d.frontends[unknownKey(a)] = unknownValue(a)
		d.widenCluster(a)
	}
	return full
}

// openClusterIPs makes no port of a cluster IP refused for being unknown.
func (d *Dataplane) openClusterIPs() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for a := range d.clusterIPs {
		if _, refused := d.frontends[unknownKey(a)]; !refused {
			continue
		}
		if err := d.maps.remove(d.maps.frontends(), unknownKey(a)); err != nil {
			return fmt.Errorf("cluster IP %s: %w", netipOf(a), err)
		}
		delete(d.frontends, unknownKey(a))
	}
	return nil
}

// widenCluster makes a one of the addresses that programs take for possible cluster IPs.
func (d *Dataplane) widenCluster(a lbAddr) {
	r := &d.maps.settings[0].Cluster[familyIndex(netipOf(a))]
	if next := r.widened(a); next != *r {
		d.maps.wrote()
		*r = next
	}
}

// noRange has no address but one that nobody has.
var noRange = lbRange{
	Mask: lbAddr{W: [4]uint32{^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0)}},
	Bits: lbAddr{W: [4]uint32{^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0)}},
}

// widened returns the smallest range that has what r has, and a. Ranges never become
// smaller: that would save a lookup at most.
func (r lbRange) widened(a lbAddr) lbRange {
	if r == noRange {
		r.Bits = a
	}
	for i := range a.W {
		r.Mask.W[i] &^= r.Bits.W[i] ^ a.W[i]
		r.Bits.W[i] &= r.Mask.W[i]
	}
	return r
}

// restoreClusterIPs counts what is in the table.
func (d *Dataplane) restoreClusterIPs() {
	d.clusterIPs = clusterIPs{}
	for key, v := range d.frontends {
		d.countClusterIP(key.Addr, v, 1)
	}
}
