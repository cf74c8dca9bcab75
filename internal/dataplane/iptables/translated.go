// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"maps"
	"slices"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// Translated returns the addresses to which there are TCP and SCTP connections that
// netfilter sends elsewhere, on whoever's behalf, in the network namespace of the calling
// thread.
func Translated() ([]lb.FrontendKey, error) {
	at := map[lb.FrontendKey]bool{}
	for _, f := range families {
		for _, proto := range []lb.Proto{lb.TCP, lb.SCTP} {
			err := flows(f, proto, func(fl flow) {
				if !fl.ended() {
					at[lb.FrontendKey{Addr: fl.frontend, Proto: fl.proto}] = true
				}
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return slices.SortedFunc(maps.Keys(at), func(a, b lb.FrontendKey) int {
		return lb.Frontend{FrontendKey: a}.Compare(lb.Frontend{FrontendKey: b})
	}), nil
}
