// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
)

// TestStaleMany looks for stale sockets among many, first with none, then with all of
// them, and logs how long it took. 50,000 run with LBPROXY_TEST_SOCKETS=50000.
func TestStaleMany(t *testing.T) {
	n := 4000
	if s := os.Getenv("LBPROXY_TEST_SOCKETS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	r := newRig(t, nil)
	k := r.killer()
	r.sync(dataplane.Delta{Full: true, Put: r.dns("backend1")})
	hosts := []string{"client1", "backend2", "backend3", lab.Node}
	for _, h := range hosts {
		r.startClient(h, "crowd", staleVIP4, n/len(hosts)).ready()
	}
	r.liveIs("all are connected", uint64(n))
	var took []time.Duration
	for range 21 {
		start := time.Now()
		found, connecting, err := k.find()
		if err != nil || len(found) != 0 || connecting {
			t.Fatalf("found %d, connecting %v, error %v, want none", len(found), connecting, err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	t.Logf("a pass over %d sockets that are not stale: median %v, best %v", n, took[len(took)/2], took[0])
	r.sync(dataplane.Delta{Put: r.dns("backend2")})
	start := time.Now()
	r.within(time.Minute, "no socket is stale", func() bool {
		found, _, err := k.find()
		return err == nil && len(found) == 0
	})
	t.Logf("all were destroyed within %v", time.Since(start))
	r.liveIs("all are destroyed", 0)
}
