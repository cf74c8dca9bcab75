// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// manyDevices is how many appear and vanish: a large node's pods, all at once.
const manyDevices = 1000

// Devices come and go as pods do: their other ends are in a namespace, and the
// namespace is deleted.
func TestManyDevicesComeAndGo(t *testing.T) {
	r := newRig(t)
	r.put("web.yaml", r.manifest("web", webVIP, "backend1", "backend2"))
	a := r.run()
	rounds := []int{100, manyDevices}
	if testing.Short() {
		rounds = rounds[:1]
	}
	before := r.served()
	if before == 0 {
		before = -1 // a kernel without tcx has no links to count
	}
	tr := r.traffic(webVIP)
	for _, n := range rounds {
		began := time.Now()
		crowd := r.crowd(n)
		t.Logf("%d devices are there after %s", n, time.Since(began).Round(time.Millisecond))
		if before > 0 {
			within(t, 3*patience, "every device is served", func() bool { return r.served() == before+2*n })
		}
		tr.flows()
		t.Logf("%d devices are served after %s", n, time.Since(began).Round(time.Millisecond))
		crowd()
		within(t, 3*patience, "the devices are gone", func() bool { return r.devices() < n })
		t.Logf("%d devices are gone after %s", n, time.Since(began).Round(time.Millisecond))
		if before > 0 {
			within(t, 3*patience, "no pin of a device that is gone stays", func() bool { return r.served() == before })
		}
		tr.flows()
		t.Logf("%d devices' pins are gone after %s", n, time.Since(began).Round(time.Millisecond))
	}
	tr.stop()
	t.Logf("log:\n%s", a.log.String())
	if !a.alive() {
		t.Error("lbproxy ended")
	}
	a.awaitReady()
	if line := a.log.line("level=ERROR"); line != "" {
		t.Error(line)
	}
	for line := range strings.Lines(a.log.String()) {
		if strings.Contains(line, "level=WARN") && !strings.Contains(line, "network devices cannot be listed") { // it looks again
			t.Error(line)
		}
	}
	r.put("web.yaml", r.manifest("web", webVIP, "backend3"))
	r.follows(webVIP, "backend3")
}

// served counts pinned links of devices.
func (r *rig) served() int {
	r.t.Helper()
	links, err := filepath.Glob(filepath.Join(r.pins(), "*", "links", "tcx-*"))
	if err != nil {
		r.t.Fatal(err)
	}
	return len(links)
}

// devices counts the devices of the node.
func (r *rig) devices() (n int) {
	r.t.Helper()
	err := r.lab.Host(lab.Node).Do(func() error {
		all, err := net.Interfaces()
		n = len(all)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// crowd gives the node n devices, and returns what makes them vanish.
func (r *rig) crowd(n int) (vanish func()) {
	r.t.Helper()
	var peers netns.NsHandle
	err := r.lab.Host(lab.Node).Do(func() (err error) { // which gives the thread back
		peers, err = netns.New()
		return err
	})
	if err != nil {
		r.t.Fatalf("namespace: %v", err)
	}
	vanish = func() {
		if peers.IsOpen() {
			peers.Close() // it was the only user
		}
	}
	r.t.Cleanup(vanish)
	err = r.lab.Host(lab.Node).Do(func() error {
		for i := range n {
			veth := &netlink.Veth{
				LinkAttrs:     netlink.LinkAttrs{Name: fmt.Sprintf("crowd%d", i), Flags: 1}, // IFF_UP
				PeerName:      fmt.Sprintf("peer%d", i),
				PeerNamespace: netlink.NsFd(int(peers)),
			}
			if err := netlink.LinkAdd(veth); err != nil {
				return fmt.Errorf("device %d: %w", i, err)
			}
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return vanish
}
