// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"time"
)

// ErrNoState is wrapped by an error that says that a dataplane has nothing in the kernel.
var ErrNoState = errors.New("lbproxy has no state here: it has not run, or cleanup removed it")

// ServiceView is what the kernel has for one Service port of one family.
type ServiceView struct {
	Name          string         `json:"name"`                    // lb.ServiceName.String
	Algorithm     string         `json:"algorithm,omitempty"`     // of its cluster pool
	Approximation string         `json:"approximation,omitempty"` // what of it is not exact; empty: nothing
	Kind          string         `json:"kind"`                    // how its table is read
	Frontends     []FrontendView `json:"frontends"`
	Backends      []BackendView  `json:"backends"`
	Rejected      uint64         `json:"rejected"` // calls and packets that found no backend
}

// FrontendView is one address at which a Service answers.
type FrontendView struct {
	Address string   `json:"address"` // address:port/PROTO
	Type    string   `json:"type"`
	Flags   []string `json:"flags,omitempty"`
}

// BackendView is one backend of one Service.
type BackendView struct {
	Address string  `json:"address"`
	State   string  `json:"state"` // active, suspect, leaving
	Pools   string  `json:"pools"` // cluster, local or both
	Opened  uint64  `json:"opened"`
	Closed  uint64  `json:"closed"`
	Live    uint64  `json:"live"` // opened - closed
	Failed  uint64  `json:"failed"`
	Share   float64 `json:"share"` // of the Service's opened connections, 0..1

	Weight        uint16  `json:"weight"`
	Expected      float64 `json:"expected"`                // the share it should get of new ones
	Suspect       bool    `json:"suspect,omitempty"`       // new connections avoid it, if another one is there
	Starting      bool    `json:"starting,omitempty"`      // in slow start: Expected is its most
	LatencyMicros uint32  `json:"latencyMicros,omitempty"` // moving average; 0: not measured
	Cost          uint64  `json:"cost,omitempty"`          // of one more connection, where load decides
}

// ConnectionView is one connection of the packet path.
type ConnectionView struct {
	Proto    string        `json:"proto"`
	Client   string        `json:"client"`
	Frontend string        `json:"frontend"`
	Backend  string        `json:"backend"`
	State    string        `json:"state"`
	Idle     time.Duration `json:"idle"`
}

// Explanation tells what would happen to a new connection, and why.
type Explanation struct {
	Decision   string        `json:"decision"` // forward, reject, drop, pass
	Reason     string        `json:"reason"`
	Service    string        `json:"service,omitempty"`
	Candidates []BackendView `json:"candidates,omitempty"`
	Masquerade bool          `json:"masquerade"` // on the packet path
	Steps      []string      `json:"steps"`      // every entry that was used, in order

	Approximation string `json:"approximation,omitempty"` // what of the algorithm is not exact; empty: nothing
}
