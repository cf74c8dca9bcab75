// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// killEarly destroys UDP sockets of the agent's own network namespace that connected to
// one of vips before anybody answered there: nothing translates what they send. Those of
// other namespaces are served by the packet path. It returns how many. Who connects to a
// vip that is gone by now is left alone.
func (k *staleKiller) killEarly(ctx context.Context, vips []lb.FrontendKey) (killed int, err error) {
	if k.useless {
		return 0, nil
	}
	for round := range 2 { // the second is for calls that were under way
		if round > 0 {
			grace(ctx, k.maps)
		}
		want, port, err := k.stillServed(vips)
		if err != nil || len(want) == 0 {
			return killed, err
		}
		n, err := k.killUnassigned(port, want)
		killed += n
		if err != nil {
			return killed, fmt.Errorf("UDP sockets that connected before their Service existed: %w", err)
		}
	}
	return killed, nil
}

// stillServed returns the UDP addresses among vips that are frontends now, and the port
// that all of them have; 0: there are several.
func (k *staleKiller) stillServed(vips []lb.FrontendKey) (addrs map[netip.AddrPort]bool, port uint16, err error) {
	addrs = map[netip.AddrPort]bool{}
	ports := map[uint16]bool{}
	for _, v := range vips {
		if v.Proto != lb.UDP {
			continue
		}
		var fe lbFrontend
		err := k.maps.byName[lbMapFrontends].Lookup(frontendKeyOf(v), &fe)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return nil, 0, fmt.Errorf("frontend %s: %w", v.Addr, err)
		}
		addrs[v.Addr], ports[v.Addr.Port()] = true, true
		port = v.Addr.Port()
	}
	if len(ports) > 1 {
		port = 0
	}
	return addrs, port, nil
}

// killUnassigned destroys connected UDP sockets with a peer among vips that were not
// led to a backend.
func (k *staleKiller) killUnassigned(port uint16, vips map[netip.AddrPort]bool) (n int, err error) {
	var early []diagSocket
	err = k.own.Do(func() error {
		d, err := openDiag()
		if err != nil {
			return err
		}
		defer d.close()
		all, err := d.connectedUDP(port)
		if err != nil {
			return err
		}
		for _, s := range all {
			at, err := k.isAt(s.peer, vips)
			if err != nil {
				return err
			}
			if at {
				early = append(early, s)
			}
		}
		return nil
	})
	if err != nil || len(early) == 0 {
		return 0, err
	}
	cookies, err := iterate[uint64](k, staleProgLbAssigned)
	if err != nil {
		return 0, err
	}
	assigned := map[uint64]bool{} // a backend may have the address of a VIP
	for _, c := range cookies {
		assigned[c] = true
	}
	var socks []diagSocket
	for _, s := range early {
		if !assigned[s.cookie] && (!socketsByFile() || !k.isBackend(s.peer)) { // by file, some are not seen
			socks = append(socks, s)
		}
	}
	err = k.own.Do(func() (err error) {
		n, err = destroyHere(socks)
		return err
	})
	return n, err
}

// isBackend tells whether sockets may have been led to an address.
func (k *staleKiller) isBackend(at netip.AddrPort) bool {
	for id := range k.maps.backends {
		if k.maps.backends[id].State != uint8(lbBackendStateBACKEND_FREE) && k.maps.isAt(uint32(id), at) {
			return true
		}
	}
	return false
}

// isAt tells whether to is one of vips; the unspecified address stands for those of
// the node.
func (k *staleKiller) isAt(to netip.AddrPort, vips map[netip.AddrPort]bool) (bool, error) {
	if vips[to] {
		return true, nil
	}
	any, family := netip.IPv4Unspecified(), 0
	if lb.FamilyOf(to.Addr()) == lb.IPv6 {
		any, family = netip.IPv6Unspecified(), 1
	}
	if !vips[netip.AddrPortFrom(any, to.Port())] {
		return false, nil
	}
	if to.Addr().IsLoopback() {
		return k.maps.settings[0].Localhost[family] != 0, nil
	}
	var one uint32
	err := k.maps.byName[lbMapNodeAddrs].Lookup(addrOf(to.Addr()), &one)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	return err == nil, err
}
