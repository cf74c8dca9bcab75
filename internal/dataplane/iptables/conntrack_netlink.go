// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// Attributes of filtered dumps (Linux 5.8, those of the status 5.15), which older
// kernels ignore, and their flags.
const (
	ctaMarkMask        = 21
	ctaFilter          = 25
	ctaStatusMask      = 26
	ctaFilterOrigFlags = 1

	filterIPDst    = 1 << 1
	filterProtoNum = 1 << 3
	filterDstPort  = 1 << 5
)

const (
	conntrackBuffer  = 64 << 10 // the kernel sends at most 32 KiB at a time
	conntrackTimeout = 10       // s, for one answer
	nfgenLen         = nl.SizeofNfgenmsg
)

// conntrack is a netlink socket to the connection tracking of a network namespace:
// that of the thread which opened it, from whichever thread it is used. Its methods
// may be called concurrently.
type conntrack struct {
	mu         sync.Mutex
	fd         int
	seq        uint32
	buf        []byte
	unfiltered bool // the kernel refuses filters
}

// openConntrack returns a socket of the calling thread's network namespace.
func openConntrack() (*conntrack, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("conntrack: socket: %w", err)
	}
	c := &conntrack{fd: fd, buf: make([]byte, conntrackBuffer)}
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: conntrackTimeout})
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	if err != nil {
		c.close()
		return nil, fmt.Errorf("conntrack: socket: %w", err)
	}
	return c, nil
}

func (c *conntrack) close() { _ = unix.Close(c.fd) }

// query says which entries are wanted. What is zero does not matter, but for the
// family.
type query struct {
	family lb.Family
	proto  lb.Proto
	addr   netip.Addr // where the client sends to
	port   uint16
	status uint32 // bits that must be set
	mark   uint32
}

// matches says of an entry what the kernel's filter should have said.
func (q query) matches(e *entry) bool {
	return (q.proto == 0 || e.proto == q.proto) &&
		(!q.addr.IsValid() || e.frontend.Addr() == q.addr) &&
		(q.port == 0 || e.frontend.Port() == q.port) &&
		e.status&q.status == q.status &&
		(q.mark == 0 || e.mark == q.mark)
}

// dump calls each for every entry that q wants; both slices of an entry are valid only
// until each returns. An error of each ends the dump and is returned. Entries that come
// or go meanwhile may or may not be among them, and one may be there twice.
func (c *conntrack) dump(q query, each func(*entry) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.unfiltered {
		err := c.dumpOnce(q, q.filter(), each)
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	err := c.dumpOnce(q, nil, each)
	c.unfiltered = c.unfiltered || err == nil
	return err
}

func (c *conntrack) dumpOnce(q query, filter []byte, each func(*entry) error) error {
	if err := c.send(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, q.family, filter); err != nil {
		return err
	}
	e := new(entry)
	var stopped error
	err := c.receive(func(msg []byte) {
		if stopped == nil && e.parse(msg) && q.matches(e) {
			stopped = each(e)
		}
	})
	return errors.Join(err, stopped)
}

// delete removes an entry, unless it is gone: then it returns false. It never removes
// one that took its place, unless that has the same client, frontend and backend. The
// kernel's identity is not enough for that: it is a hash of the address in memory, which
// is used again, and of client and frontend. So the entry is looked up by its backend.
func (c *conntrack) delete(f lb.Family, e *entry) (bool, error) {
	if len(e.reply) == 0 || len(e.ident) == 0 {
		return false, errors.New("conntrack: an entry without a name") // the kernel would delete all
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	attrs := append(append(append([]byte(nil), e.reply...), e.ident...), e.zone...)
	if err := c.send(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK, f, attrs); err != nil {
		return false, err
	}
	err := c.receive(func([]byte) {})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}

// send sends one request.
func (c *conntrack) send(operation, flags int, f lb.Family, attrs []byte) error {
	c.seq++
	msg := make([]byte, unix.NLMSG_HDRLEN+nfgenLen, unix.NLMSG_HDRLEN+nfgenLen+len(attrs))
	binary.NativeEndian.PutUint16(msg[4:], uint16(unix.NFNL_SUBSYS_CTNETLINK<<8|operation))
	binary.NativeEndian.PutUint16(msg[6:], uint16(unix.NLM_F_REQUEST|flags))
	binary.NativeEndian.PutUint32(msg[8:], c.seq)
	msg[unix.NLMSG_HDRLEN] = addressFamily(f)
	msg[unix.NLMSG_HDRLEN+1] = nl.NFNETLINK_V0
	msg = append(msg, attrs...)
	binary.NativeEndian.PutUint32(msg, uint32(len(msg)))
	if err := unix.Sendto(c.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("conntrack: send: %w", err)
	}
	return nil
}

// receive calls each for what the kernel answers to the last request, header
// excluded, up to the end of the dump or the acknowledgement.
func (c *conntrack) receive(each func(msg []byte)) error {
	for {
		n, err := unix.Read(c.fd, c.buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("conntrack: receive: %w", err)
		}
		for b := c.buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				return fmt.Errorf("conntrack: a message of %d bytes in %d", size, len(b))
			}
			msg := b[unix.NLMSG_HDRLEN:size]
			typ, seq := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:])
			b = b[min(align4(size), len(b)):]
			if seq != c.seq {
				continue // of a request before that ended early
			}
			if typ == unix.NLMSG_DONE || typ == unix.NLMSG_ERROR {
				return answerError(msg)
			}
			each(msg)
		}
	}
}

// answerError returns the error in the last message of an answer, if it is one.
func answerError(msg []byte) error {
	if len(msg) < 4 {
		return nil
	}
	if code := int32(binary.NativeEndian.Uint32(msg)); code < 0 {
		return fmt.Errorf("conntrack: %w", unix.Errno(-code))
	}
	return nil
}

// filter returns the attributes with which a kernel that can returns only what q
// wants.
func (q query) filter() []byte {
	var flags uint32
	var ip, proto []byte
	if q.addr.Is4() { // of IPv6 the kernel (6.18) returns all entries but those asked for
		flags |= filterIPDst
		ip = attribute(nil, nl.CTA_IP_V4_DST, q.addr.AsSlice())
	}
	if q.proto != 0 {
		flags |= filterProtoNum
		proto = attribute(nil, nl.CTA_PROTO_NUM, []byte{uint8(q.proto)})
	}
	if q.proto != 0 && q.port != 0 {
		flags |= filterDstPort
		proto = attribute(proto, nl.CTA_PROTO_DST_PORT, binary.BigEndian.AppendUint16(nil, q.port))
	}
	var out []byte
	if flags != 0 {
		// A tuple needs both parts, even if one is empty.
		tuple := attribute(nil, nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, ip)
		tuple = attribute(tuple, nl.CTA_TUPLE_PROTO|unix.NLA_F_NESTED, proto)
		out = attribute(out, nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, tuple)
		out = attribute(out, ctaFilter|unix.NLA_F_NESTED,
			attribute(nil, ctaFilterOrigFlags, binary.NativeEndian.AppendUint32(nil, flags)))
	}
	if q.status != 0 {
		bits := binary.BigEndian.AppendUint32(nil, q.status)
		out = attribute(out, nl.CTA_STATUS, bits)
		out = attribute(out, ctaStatusMask, bits)
	}
	if q.mark != 0 {
		out = attribute(out, nl.CTA_MARK, be32(q.mark))
		out = attribute(out, ctaMarkMask, be32(math.MaxUint32))
	}
	return out
}

// attribute appends a netlink attribute to b.
func attribute(b []byte, typ int, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, uint16(typ))
	b = append(b, value...)
	return append(b, make([]byte, align4(len(value))-len(value))...)
}

func align4(n int) int { return (n + 3) &^ 3 }

func addressFamily(f lb.Family) uint8 {
	if f == lb.IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}
