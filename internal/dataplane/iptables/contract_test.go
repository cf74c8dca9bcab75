// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/dptest"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lab"
)

// lacks is what packets cannot do. What the suites expect instead is theirs.
var lacks = map[dptest.Feature]bool{
	dptest.FeatureSuspect:       true, // see Dataplane.Suspect
	dptest.FeatureSocketPath:    true, // processes are on the packet path
	dptest.FeatureReferenceHash: true, // another one, which netfilter can compute
	dptest.FeatureExactLoad:     true, // conntrack is read once a second
	dptest.FeatureLocalhost6:    true, // there is no route_localnet for IPv6
}

// netHarness runs the suites with real packets.
type netHarness struct {
	*labtest.Net
	backend string
	rig     *rig
}

func newNetHarness(t *testing.T, backend string) *netHarness {
	t.Helper()
	h := &netHarness{Net: labtest.New(t), backend: backend}
	h.Lost = h.tellLost
	return h
}

func (h *netHarness) Dataplane(t *testing.T) dataplane.Dataplane {
	h.rig = newRig(t, h.Net, h.backend, nil)
	return h.rig.dp
}

// Reopen ends the agent and starts it again.
func (h *netHarness) Reopen(*testing.T) dataplane.Dataplane {
	h.rig.stop()
	h.rig.start()
	return h.rig.dp
}

func (h *netHarness) Supports(f dptest.Feature) bool { return !lacks[f] }

// Open holds a TCP connection. conntrack sees its end before the process does.
func (h *netHarness) Open(t *testing.T, f dptest.Flow) dptest.Held {
	t.Helper()
	return h.Net.Open(t, f, nil)
}

// Refresh implements dptest.Refresher.
func (h *netHarness) Refresh(t *testing.T) {
	t.Helper()
	h.rig.refresh()
}

// tellLost logs what conntrack knows of an exchange that should be answered and was not.
func (h *netHarness) tellLost(t *testing.T, _ dptest.Origin, r lab.Result) {
	t.Helper()
	for line := range strings.Lines(h.rig.output("cat", "/proc/net/nf_conntrack")) {
		if strings.Contains(line, "port="+strings.TrimPrefix(r.Local.String(), r.Local.Addr().String()+":")) {
			t.Log(strings.TrimSpace(line))
		}
	}
}

func TestContract(t *testing.T) {
	t.Parallel()
	dptest.Run(t, newNetHarness(t, "nft"))
}

// TestContractLegacy runs it with the other backend, which gets the same text.
func TestContractLegacy(t *testing.T) {
	t.Parallel()
	dptest.Run(t, newNetHarness(t, "legacy"))
}
