// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// Flow is a connection as packets have it somewhere: who began it, and who answers.
type Flow struct {
	Proto           lb.Proto
	Client, Backend netip.AddrPort
}
