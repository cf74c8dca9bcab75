// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"encoding/binary"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// entry is a flow, with what the kernel wants to hear to delete it: attributes,
// headers included.
type entry struct {
	flow
	status uint32
	mark   uint32
	source netip.AddrPort // the client, as the backend sees it
	reply  []byte         // the addresses that the backend uses
	ident  []byte
	zone   []byte // nil: the default one
}

// nextAttr returns the first attribute of b without its header, its type without
// flags, how long it is with its header, and what follows. ok is false at the end of
// b, and for what is none.
func nextAttr(b []byte) (typ uint16, value []byte, size int, rest []byte, ok bool) {
	if len(b) < unix.SizeofNlAttr {
		return 0, nil, 0, nil, false
	}
	size = int(binary.NativeEndian.Uint16(b))
	if size < unix.SizeofNlAttr || size > len(b) {
		return 0, nil, 0, nil, false
	}
	typ = binary.NativeEndian.Uint16(b[2:]) & nl.NLA_TYPE_MASK
	return typ, b[unix.SizeofNlAttr:size], size, b[min(align4(size), len(b)):], true
}

// parse reads a message of the kernel that describes an entry. It does not allocate.
// It returns false for what it does not understand.
func (e *entry) parse(msg []byte) bool {
	if len(msg) < nfgenLen {
		return false
	}
	*e = entry{}
	var original, reply tuple
	for b := msg[nfgenLen:]; ; {
		typ, value, size, rest, ok := nextAttr(b)
		if !ok {
			break
		}
		switch typ {
		case nl.CTA_TUPLE_ORIG:
			original = parseTuple(value)
		case nl.CTA_TUPLE_REPLY:
			reply, e.reply = parseTuple(value), b[:min(align4(size), len(b))]
		case nl.CTA_STATUS:
			e.status = bigEndian32(value)
		case nl.CTA_MARK:
			e.mark = bigEndian32(value)
		case nl.CTA_PROTOINFO:
			e.state = parseState(value)
		case nl.CTA_ID:
			e.id, e.ident = bigEndian32(value), b[:min(align4(size), len(b))]
		case nl.CTA_ZONE:
			e.zone = b[:min(align4(size), len(b))]
		}
		b = rest
	}
	e.proto = original.proto
	e.client = netip.AddrPortFrom(original.src, original.srcPort)
	e.frontend = netip.AddrPortFrom(original.dst, original.dstPort)
	e.backend = netip.AddrPortFrom(reply.src, reply.srcPort)
	e.source = netip.AddrPortFrom(reply.dst, reply.dstPort)
	e.natted = e.status&statusDNAT != 0
	e.masked = e.status&statusSNAT != 0
	e.moved = e.masked && !e.natted && reply.dst == original.src && reply.dstPort != original.srcPort
	e.replied = e.status&statusReplied != 0
	return e.client.IsValid() && e.frontend.IsValid() && e.backend.IsValid()
}

// tuple is the addresses of one direction.
type tuple struct {
	proto            lb.Proto
	src, dst         netip.Addr
	srcPort, dstPort uint16
}

func parseTuple(b []byte) (t tuple) {
	for {
		typ, value, _, rest, ok := nextAttr(b)
		if !ok {
			return t
		}
		switch typ {
		case nl.CTA_TUPLE_IP:
			t.parseAddrs(value)
		case nl.CTA_TUPLE_PROTO:
			t.parsePorts(value)
		}
		b = rest
	}
}

func (t *tuple) parseAddrs(b []byte) {
	for {
		typ, value, _, rest, ok := nextAttr(b)
		if !ok {
			return
		}
		addr, _ := netip.AddrFromSlice(value)
		switch typ {
		case nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC:
			t.src = addr
		case nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST:
			t.dst = addr
		}
		b = rest
	}
}

func (t *tuple) parsePorts(b []byte) {
	for {
		typ, value, _, rest, ok := nextAttr(b)
		if !ok {
			return
		}
		switch {
		case typ == nl.CTA_PROTO_NUM && len(value) >= 1:
			t.proto = lb.Proto(value[0])
		case typ == nl.CTA_PROTO_SRC_PORT && len(value) >= 2:
			t.srcPort = binary.BigEndian.Uint16(value)
		case typ == nl.CTA_PROTO_DST_PORT && len(value) >= 2:
			t.dstPort = binary.BigEndian.Uint16(value)
		}
		b = rest
	}
}

// parseState returns the state of TCP.
func parseState(b []byte) uint8 {
	state := find(find(b, nl.CTA_PROTOINFO_TCP), nl.CTA_PROTOINFO_TCP_STATE)
	if len(state) == 0 {
		return 0
	}
	return state[0]
}

// find returns the value of the first attribute of a type, or nil.
func find(b []byte, want uint16) []byte {
	for {
		typ, value, _, rest, ok := nextAttr(b)
		if !ok || typ == want {
			return value
		}
		b = rest
	}
}

func bigEndian32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}
