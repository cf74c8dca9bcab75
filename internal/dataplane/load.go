// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// LoadReader is implemented by dataplanes that know which connections are open.
// It may be called from any goroutine, at any time.
type LoadReader interface {
	// Live returns the connections of each backend of name that have not ended.
	// It returns nil for a Service that is not served.
	Live(name lb.ServiceName) map[netip.AddrPort]uint64
}
