// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"net/netip"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// KeepTranslated tells the dataplane at which addresses netfilter translates TCP and SCTP
// connections, of whatever they are. As long as some are at frontends, packets in the
// middle of a connection that is not in the connection table pass: they are netfilter's.
// Otherwise such packets are balanced as first ones are, and the client learns by the
// answer that its connection is gone. Before the first full Sync it is not known what all
// the frontends are: any address may be one, and what the agent before was not sure of
// passes. It returns whether it should be called again.
func (d *Dataplane) KeepTranslated(at []lb.FrontendKey) (again bool) {
	d.mu.Lock()
	d.translated = [2]bool{}
	if !d.complete {
		d.translated = d.unsure
	}
	for _, key := range at {
		if !d.complete || d.isFrontend(key) {
			d.translated[familyIndex(key.Addr.Addr())] = true
		}
	}
	again = !d.complete || d.translated[0] || d.translated[1]
	d.mu.Unlock()
	d.syncSettings()
	return again
}

// restoreTranslated takes over what an earlier agent found, so that a restart changes
// nothing. Without one, nothing is known.
func (d *Dataplane) restoreTranslated() {
	for i, known := range d.maps.settings[0].Known {
		d.translated[i] = known&uint32(lbKnownKNOWN_TRANSLATED) != 0
	}
	d.unsure = d.translated
	if len(d.frontends) == 0 {
		d.unsure = [2]bool{true, true}
	}
}

// isFrontend tells whether a Service answers there. d.mu is held.
func (d *Dataplane) isFrontend(key lb.FrontendKey) bool {
	if _, ok := d.frontends[frontendKeyOf(key)]; ok {
		return true
	}
	any := netip.AddrPortFrom(lb.FamilyOf(key.Addr.Addr()).Unspecified(), key.Addr.Port())
	_, ok := d.frontends[frontendKeyOf(lb.FrontendKey{Addr: any, Proto: key.Proto})]
	return ok
}

// TakeOver tells the dataplane that nobody else serves its frontends any more, and returns
// them. UDP sockets of the node that are connected to one of them are closed soon: nothing
// translates what they send.
func (d *Dataplane) TakeOver() []lb.FrontendKey {
	d.mu.Lock()
	defer d.mu.Unlock()
	var keys []lb.FrontendKey
	for key, v := range d.frontends {
		if v.Flags&uint8(lbFrontendFlagsFE_UNKNOWN) == 0 {
			keys = append(keys, frontendFrom(key))
		}
	}
	d.left.early = append(d.left.early, keys...)
	d.wakeLeftovers()
	return keys
}
