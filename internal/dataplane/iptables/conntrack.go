// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// The states of TCP in connection tracking that matter here.
const (
	tcpSynSent  = 1
	tcpLastAck  = 6 // both sides have closed
	tcpTimeWait = 7
	tcpClose    = 8 // reset
)

// Bits of an entry's status.
const (
	statusReplied = 1 << 1
	statusSNAT    = 1 << 4
	statusDNAT    = 1 << 5
)

// flow is an entry of connection tracking.
type flow struct {
	proto    lb.Proto
	state    uint8 // of TCP; 0 for others
	natted   bool  // its destination was rewritten
	masked   bool  // its source was rewritten
	moved    bool  // only its source port was, as another connection had that already
	replied  bool  // packets were seen in both directions
	client   netip.AddrPort
	frontend netip.AddrPort // where the client sends to
	backend  netip.AddrPort // who answers: the frontend itself if it was not rewritten
	id       uint32         // tells it from another entry with the same addresses
}

// ended tells whether a TCP connection was closed by both sides, or reset. Its entry
// stays for a while.
func (f *flow) ended() bool {
	return f.proto == lb.TCP && f.state >= tcpLastAck && f.state <= tcpClose
}

// flows calls each for the entries of a family and protocol whose destination was
// rewritten, in the network namespace of the calling thread.
func flows(f lb.Family, proto lb.Proto, each func(flow)) error {
	c, err := openConntrack()
	if err != nil {
		return err
	}
	defer c.close()
	return c.flows(f, proto, each)
}

// flows is the function of that name, in the network namespace of c.
func (c *conntrack) flows(f lb.Family, proto lb.Proto, each func(flow)) error {
	return c.dump(query{family: f, proto: proto, status: statusDNAT}, func(e *entry) error {
		each(e.flow)
		return nil
	})
}
