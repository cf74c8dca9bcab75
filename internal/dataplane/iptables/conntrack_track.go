// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// What an entry is given that stands for a connection which is older than it.
const (
	tcpEstablished = 3
	statusKnown    = statusReplied | 1<<2 | 1<<3 // assured: it is not dropped for others; and confirmed
	tcpLiberal     = 1 << 3                      // the window is not known
	trackedFor     = 24 * 60 * 60                // s without a packet, as with eBPF
)

// Tracker is the connection tracking of the calling thread's network namespace, for
// connections that are older than it, or that it does not see.
type Tracker struct {
	root string // of a test's settings; empty: the system's
}

// settings are those that tell how full the table is.
func (t Tracker) settings() sysctls {
	s := systemSettings(nil)
	if t.root != "" {
		s.root = t.root
	}
	return s
}

// Track makes flows known, as if their connections were established. Netfilter gives the
// addresses of one that is known to no other. A flow that is known already stays as it
// is; made are the others. It goes on after an error, but for a table that is full; and it
// takes half of what the table has left at most, the first ones.
func (t Tracker) Track(flows []dataplane.Flow) (made []dataplane.Flow, err error) {
	flows, full := fitting(flows, nil, trackRoom(t.settings()))
	err = eachFlow(flows, func(c *conntrack, fl dataplane.Flow) error {
		is, err := c.create(trackMessage(fl, trackedFor), fl)
		if is {
			made = append(made, fl)
		}
		return err
	})
	return made, errors.Join(full, err)
}

// create makes the entry of a flow, unless there is one.
func (c *conntrack) create(message []byte, fl dataplane.Flow) (made bool, err error) {
	err = c.request(nl.IPCTNL_MSG_CT_NEW, unix.NLM_F_CREATE|unix.NLM_F_EXCL, lb.FamilyOf(fl.Client.Addr()), message)
	if errors.Is(err, unix.EEXIST) {
		return false, nil
	}
	return err == nil, err
}

// fitting returns those of flows that there are entries of, and so many others, the first
// ones, as there is room for. The error says how many are left out.
func fitting(flows []dataplane.Flow, have map[dataplane.Flow]bool, room int) ([]dataplane.Flow, error) {
	fit := make([]dataplane.Flow, 0, len(flows))
	for _, fl := range flows {
		switch {
		case have[fl]:
		case room > 0:
			room--
		default:
			continue
		}
		fit = append(fit, fl)
	}
	if out := len(flows) - len(fit); out > 0 {
		return fit, fmt.Errorf("%d of %d connections do not fit (nf_conntrack_max)", out, len(flows))
	}
	return fit, nil
}

// trackRoom returns half of what the table has left.
func trackRoom(s sysctls) int {
	count, limit := tableFill(s)
	return int((limit - min(count, limit)) / 2)
}

// tableFill returns how many entries the table has, and how many it may have.
func tableFill(s sysctls) (count, limit uint64) {
	const unlimited = math.MaxInt
	limit, err := readSetting(s.file("net/netfilter/nf_conntrack_max"))
	if err != nil || limit == 0 {
		return 0, unlimited
	}
	if count, err = readSetting(s.file("net/netfilter/nf_conntrack_count")); err != nil {
		return 0, unlimited
	}
	return count, limit
}

// Untrack makes flows forgotten.
func (Tracker) Untrack(flows []dataplane.Flow) error {
	return eachFlow(flows, func(c *conntrack, fl dataplane.Flow) error {
		err := c.request(nl.IPCTNL_MSG_CT_DELETE, 0, lb.FamilyOf(fl.Client.Addr()), tupleAttr(nl.CTA_TUPLE_ORIG, fl.Proto, fl.Client, fl.Backend))
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	})
}

// eachFlow calls do for all flows. The error says how many failed, and names the first.
func eachFlow(flows []dataplane.Flow, do func(*conntrack, dataplane.Flow) error) error {
	if len(flows) == 0 {
		return nil
	}
	c, err := openConntrack()
	if err != nil {
		return err
	}
	defer c.close()
	var first error
	failed := 0
	for i, fl := range flows {
		err := do(c, fl)
		if err == nil {
			continue
		}
		if failed++; first == nil {
			first = fmt.Errorf("%s %s to %s: %w", fl.Proto, fl.Client, fl.Backend, err)
		}
		if errors.Is(err, unix.ENOMEM) {
			failed += len(flows) - i - 1
			break
		}
	}
	if first != nil {
		return fmt.Errorf("%d of %d connections, such as %w", failed, len(flows), first)
	}
	return nil
}

// request sends a request and waits for its acknowledgement.
func (c *conntrack) request(operation, flags int, f lb.Family, attrs []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.send(operation, flags|unix.NLM_F_ACK, f, attrs); err != nil {
		return err
	}
	return c.receive(func([]byte) {})
}

// reserveMessage is what asks the kernel to reserve a flow.
func reserveMessage(fl dataplane.Flow) []byte {
	return attribute(trackMessage(fl, reservedFor), nl.CTA_MARK, be32(reservedMark))
}

// renewMessage is what asks the kernel to go on with it.
func renewMessage(fl dataplane.Flow) []byte {
	return attribute(tupleAttr(nl.CTA_TUPLE_ORIG, fl.Proto, fl.Client, fl.Backend), nl.CTA_TIMEOUT, be32(reservedFor))
}

// trackMessage is what asks the kernel for the entry of a flow.
func trackMessage(fl dataplane.Flow, seconds uint32) []byte {
	attrs := [][]byte{
		tupleAttr(nl.CTA_TUPLE_ORIG, fl.Proto, fl.Client, fl.Backend),
		tupleAttr(nl.CTA_TUPLE_REPLY, fl.Proto, fl.Backend, fl.Client),
		attribute(nil, nl.CTA_TIMEOUT, be32(seconds)),
		attribute(nil, nl.CTA_STATUS, be32(statusKnown)),
	}
	if fl.Proto == lb.TCP {
		liberal := []byte{tcpLiberal, tcpLiberal} // value and mask
		attrs = append(attrs, nested(nl.CTA_PROTOINFO, nested(nl.CTA_PROTOINFO_TCP,
			attribute(nil, nl.CTA_PROTOINFO_TCP_STATE, []byte{tcpEstablished}),
			attribute(nil, nl.CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, liberal),
			attribute(nil, nl.CTA_PROTOINFO_TCP_FLAGS_REPLY, liberal))))
	}
	return slices.Concat(attrs...)
}

// tupleAttr is the addresses of one direction.
func tupleAttr(typ int, proto lb.Proto, src, dst netip.AddrPort) []byte {
	from, to := nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST
	if src.Addr().Is6() {
		from, to = nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
	}
	return nested(typ,
		nested(nl.CTA_TUPLE_IP, attribute(nil, from, src.Addr().AsSlice()), attribute(nil, to, dst.Addr().AsSlice())),
		nested(nl.CTA_TUPLE_PROTO, attribute(nil, nl.CTA_PROTO_NUM, []byte{uint8(proto)}),
			attribute(nil, nl.CTA_PROTO_SRC_PORT, be16(src.Port())), attribute(nil, nl.CTA_PROTO_DST_PORT, be16(dst.Port()))))
}

// nested is an attribute of attributes.
func nested(typ int, parts ...[]byte) []byte {
	return attribute(nil, typ|unix.NLA_F_NESTED, slices.Concat(parts...))
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
