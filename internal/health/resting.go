// SPDX-License-Identifier: Apache-2.0

package health

import (
	"net/netip"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// Resting is a backend of a Service port that is in a pool and takes no new connections
// there, for its weight or for its health.
type Resting struct {
	Service        lb.ServiceName
	Backend        netip.AddrPort
	Cluster, Local bool // the pools
}

// Resting returns all of them, in no order.
func (m *Monitor) Resting() []Resting {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []Resting
	for _, o := range m.objects {
		for i := range o.ports {
			list = append(list, resting(o.ports[i].out)...)
		}
	}
	return list
}

// resting returns those of a port, as it is handed on.
func resting(svc *lb.Service) (list []Resting) {
	place := map[netip.AddrPort]int{}
	for _, sc := range scopes {
		for _, be := range svc.Pool(sc).Backends {
			if be.Weight > 0 {
				continue
			}
			i, known := place[be.Addr]
			if !known {
				i = len(list)
				place[be.Addr], list = i, append(list, Resting{Service: svc.Name, Backend: be.Addr})
			}
			if sc == lb.ScopeCluster {
				list[i].Cluster = true
			} else {
				list[i].Local = true
			}
		}
	}
	return list
}
