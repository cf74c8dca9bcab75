// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"errors"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	reservedMark = 0x6c620001 // of entries of conntrack that keep a source port from others
	reservedFor  = 60         // s, that they last without an agent
)

// masked opens connections that are masqueraded; end closes them.
func (r *rig) masked() (end func()) {
	r.t.Helper()
	var conns []*lab.Conn
	for _, to := range targets(80, nodePort) {
		conns = append(conns, r.hold(lab.Outside, lab.Request{Proto: lab.TCP, To: to.at}))
	}
	return func() {
		for _, c := range conns {
			if err := c.Close(r.bounded(), "fin"); err != nil {
				r.t.Error(err)
			}
		}
	}
}

// tracked returns what the node's connection tracking knows.
func (r *rig) tracked() (all []*netlink.ConntrackFlow) {
	r.t.Helper()
	err := r.lab.Host(lab.Node).Do(func() error {
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			var list []*netlink.ConntrackFlow
			err := error(netlink.ErrDumpInterrupted)
			for errors.Is(err, netlink.ErrDumpInterrupted) {
				list, err = netlink.ConntrackTableList(netlink.ConntrackTable, family) //nolint:forbidigo // that is what the loop is for
			}
			if err != nil {
				return err
			}
			all = append(all, list...)
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}

// reserved checks that source ports are reserved, and for how long.
func (r *rig) reserved() {
	r.t.Helper()
	n := 0
	for _, f := range r.tracked() {
		if f.Mark == reservedMark {
			if n++; f.TimeOut > reservedFor {
				r.t.Errorf("reserved for %d s, want at most %d: %v", f.TimeOut, reservedFor, f)
			}
		}
	}
	if n == 0 {
		r.t.Error("no source port is reserved")
	}
}

// nothingReserved checks that no source port is.
func (r *rig) nothingReserved() {
	r.t.Helper()
	for _, f := range r.tracked() {
		if f.Mark == reservedMark {
			r.t.Errorf("still reserved: %v", f)
		}
	}
}
