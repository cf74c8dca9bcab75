// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"context"
	"sync"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane/dptest"
	"github.com/lbproxy/lbproxy/internal/lab"
)

// Open holds a TCP connection. Its end is known to the dataplane a little later
// than the process has closed it: Close waits for that.
func (h *netHarness) Open(t *testing.T, f dptest.Flow) dptest.Held {
	t.Helper()
	host := h.lab.Host(originHosts[f.From])
	c, res := host.Open(t.Context(), lab.Request{Proto: lab.TCP, To: f.To, Timeout: patience})
	if res.Kind != lab.OK {
		t.Fatalf("%s: %s %s", f, res.Kind, res.Err)
	}
	live := func() uint64 {
		opened, closed, _ := h.rig.totals()
		return opened - closed
	}
	return dptest.Held{
		Backend: res.ServerLocal,
		Check:   func() error { return c.Ping(t.Context()) },
		Close: sync.OnceFunc(func() {
			before := live()
			if err := c.Close(context.Background(), "rst"); err != nil {
				t.Error(err)
			}
			h.rig.within(patience, "the end of a connection is counted", func() bool { return live() < before })
		}),
	}
}
