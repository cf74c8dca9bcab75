// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// What ipsets answer, besides plain errors of the kernel. The numbers are in
// include/uapi/linux/netfilter/ipset/ip_set.h.
var (
	errSetFull  = errors.New("the set is full")
	errSetBusy  = errors.New("a rule refers to it")
	errNoType   = errors.New("the kernel does not know the set's type (CONFIG_IP_SET_HASH_*)")
	errNoIPSet  = errors.New("the kernel has no ipsets (CONFIG_IP_SET, module ip_set)")
	errMismatch = errors.New("the two sets are of different kinds")
)

// listHeaders asks for a listing without members; attrTypeMask leaves the number of an
// attribute without its flags.
const (
	listHeaders  = 4
	attrTypeMask = 0x3fff
)

// ipsets speaks to the kernel's ip_set by netlink. The netlink package's own functions
// for that panic on errors that are no errno, and cannot list headers alone.
type ipsets struct {
	sockets map[int]*nl.SocketHandle
}

// openIPSets opens the socket in the network namespace of the calling thread.
func openIPSets() (*ipsets, error) {
	s, err := netfilterSocket()
	if err != nil {
		return nil, fmt.Errorf("ipsets: %w", err)
	}
	return &ipsets{s}, nil
}

func netfilterSocket() (map[int]*nl.SocketHandle, error) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	for _, set := range []func(*unix.Timeval) error{s.SetSendTimeout, s.SetReceiveTimeout} {
		if err := set(&nl.SocketTimeoutTv); err != nil {
			s.Close()
			return nil, fmt.Errorf("netlink socket: %w", err)
		}
	}
	return map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: s}}, nil
}

func (k *ipsets) close() { k.sockets[unix.NETLINK_NETFILTER].Close() }

// request begins a message.
func (k *ipsets) request(cmd int, name string) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_IPSET<<8|cmd, nl.GetIpsetFlags(cmd))
	req.Sockets = k.sockets
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	if name != "" {
		req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(name)))
	}
	return req
}

func execute(req *nl.NetlinkRequest, each func([]byte)) error {
	err := req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
		each(msg)
		return true
	})
	return ipsetError(err)
}

func ipsetError(err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err
	}
	switch int(errno) {
	case nl.IPSET_ERR_TYPE_SPECIFIC: // of hash types: IPSET_ERR_HASH_FULL
		return errSetFull
	case nl.IPSET_ERR_BUSY, nl.IPSET_ERR_REFERENCED:
		return errSetBusy
	case nl.IPSET_ERR_FIND_TYPE:
		return errNoType
	case nl.IPSET_ERR_TYPE_MISMATCH:
		return errMismatch
	}
	if int(errno) >= nl.IPSET_ERR_PRIVATE {
		return nl.IPSetError(errno)
	}
	return err
}

func ignore([]byte) {}

// available tells whether the kernel has ipsets.
func (k *ipsets) available() error {
	err := execute(k.request(nl.IPSET_CMD_PROTOCOL, ""), ignore)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return errNoIPSet
	}
	return err
}

// revision returns the oldest revision of a type that has timeouts and prefixes of all
// lengths but 0, which every kernel in use still knows.
func (t setType) revision() uint8 {
	if t == hashNetPort || t == hashIPPortNet {
		return 2
	}
	return 1
}

func netUint32(typ int, v uint32) *nl.RtAttr {
	return nl.NewRtAttr(typ|int(nl.NLA_F_NET_BYTEORDER), binary.BigEndian.AppendUint32(nil, v))
}

// create makes a set with room for size chains of members to begin with.
func (k *ipsets) create(s setSpec, size uint32) error {
	family := uint8(unix.AF_INET)
	if s.family == lb.IPv6 {
		family = unix.AF_INET6
	}
	req := k.request(nl.IPSET_CMD_CREATE, s.name)
	req.Flags |= unix.NLM_F_EXCL
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_TYPENAME, nl.ZeroTerminated(string(s.typ))))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_REVISION, nl.Uint8Attr(s.typ.revision())))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_FAMILY, nl.Uint8Attr(family)))
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|int(nl.NLA_F_NESTED), nil)
	data.AddChild(netUint32(nl.IPSET_ATTR_HASHSIZE, size))
	data.AddChild(netUint32(nl.IPSET_ATTR_MAXELEM, s.maxMembers()))
	if s.timeout > 0 {
		data.AddChild(netUint32(nl.IPSET_ATTR_TIMEOUT, s.timeout))
	}
	req.AddData(data)
	return execute(req, ignore)
}

func (k *ipsets) destroy(name string) error {
	return execute(k.request(nl.IPSET_CMD_DESTROY, name), ignore)
}

// swap exchanges what two names mean; rules go on to mean the names.
func (k *ipsets) swap(a, b string) error {
	req := k.request(nl.IPSET_CMD_SWAP, a)
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME2, nl.ZeroTerminated(b)))
	return execute(req, ignore)
}

// add puts a member in; one that is there gets the timeout anew. timeout 0 is the set's.
func (k *ipsets) add(s setSpec, m member, timeout uint32) error {
	return k.change(nl.IPSET_CMD_ADD, s, m, timeout)
}

// del takes a member out; it need not be there.
func (k *ipsets) del(s setSpec, m member) error {
	return k.change(nl.IPSET_CMD_DEL, s, m, 0)
}

func (k *ipsets) change(cmd int, s setSpec, m member, timeout uint32) error {
	req := k.request(cmd, s.name)
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|int(nl.NLA_F_NESTED), nil)
	addAddr(data, nl.IPSET_ATTR_IP, nl.IPSET_ATTR_CIDR, m.addr)
	if m.proto != 0 {
		data.AddChild(nl.NewRtAttr(nl.IPSET_ATTR_PROTO, nl.Uint8Attr(uint8(m.proto))))
		port := binary.BigEndian.AppendUint16(nil, m.port)
		data.AddChild(nl.NewRtAttr(nl.IPSET_ATTR_PORT|int(nl.NLA_F_NET_BYTEORDER), port))
	}
	if m.from.IsValid() {
		addAddr(data, nl.IPSET_ATTR_IP2, nl.IPSET_ATTR_CIDR2, m.from)
	}
	if timeout > 0 {
		data.AddChild(netUint32(nl.IPSET_ATTR_TIMEOUT, timeout))
	}
	data.AddChild(netUint32(nl.IPSET_ATTR_LINENO, 0))
	req.AddData(data)
	return execute(req, ignore)
}

func addAddr(data *nl.RtAttr, ip, cidr int, p netip.Prefix) {
	typ := nl.IPSET_ATTR_IPADDR_IPV4
	if p.Addr().Is6() {
		typ = nl.IPSET_ATTR_IPADDR_IPV6
	}
	nested := data.AddRtAttr(ip|int(nl.NLA_F_NESTED), nil)
	nested.AddRtAttr(typ|int(nl.NLA_F_NET_BYTEORDER), p.Addr().AsSlice())
	if !p.IsSingleIP() {
		data.AddRtAttr(cidr, nl.Uint8Attr(uint8(p.Bits())))
	}
}

// setHead is what the kernel says of a set.
type setHead struct {
	setSpec
	size, members, references uint32
}

// heads returns all sets of the namespace, without their members.
func (k *ipsets) heads() ([]setHead, error) {
	req := k.request(nl.IPSET_CMD_LIST, "")
	req.AddData(netUint32(nl.IPSET_ATTR_FLAGS, listHeaders))
	var heads []setHead
	err := execute(req, func(msg []byte) {
		var h setHead
		eachAttr(msg, nl.SizeofNfgenmsg, func(typ int, v []byte) {
			h.attr(typ, v)
		})
		heads = append(heads, h)
	})
	return heads, err
}

func (h *setHead) attr(typ int, v []byte) {
	switch typ {
	case nl.IPSET_ATTR_SETNAME:
		h.name = nl.BytesToString(v)
	case nl.IPSET_ATTR_TYPENAME:
		h.typ = setType(nl.BytesToString(v))
	case nl.IPSET_ATTR_FAMILY:
		h.family = lb.IPv4
		if v[0] == unix.AF_INET6 {
			h.family = lb.IPv6
		}
	case nl.IPSET_ATTR_DATA:
		eachAttr(v, 0, func(typ int, v []byte) {
			if len(v) != 4 {
				return
			}
			n := binary.BigEndian.Uint32(v)
			switch typ {
			case nl.IPSET_ATTR_TIMEOUT:
				h.timeout = n
			case nl.IPSET_ATTR_HASHSIZE:
				h.size = n
			case nl.IPSET_ATTR_ELEMENTS:
				h.members = n
			case nl.IPSET_ATTR_REFERENCES:
				h.references = n
			}
		})
	}
}

// list hands each member of a set, and the seconds that it stays, to each.
func (k *ipsets) list(name string, each func(m member, timeout uint32)) error {
	return execute(k.request(nl.IPSET_CMD_LIST, name), func(msg []byte) {
		eachAttr(msg, nl.SizeofNfgenmsg, func(typ int, v []byte) {
			if typ != nl.IPSET_ATTR_ADT {
				return
			}
			eachAttr(v, 0, func(_ int, v []byte) { each(parseMember(v)) })
		})
	})
}

func parseMember(b []byte) (m member, timeout uint32) {
	bits, fromBits := -1, -1
	var addr, from netip.Addr
	eachAttr(b, 0, func(typ int, v []byte) {
		switch typ {
		case nl.IPSET_ATTR_IP:
			addr = parseAddr(v)
		case nl.IPSET_ATTR_IP2:
			from = parseAddr(v)
		case nl.IPSET_ATTR_CIDR:
			bits = int(v[0])
		case nl.IPSET_ATTR_CIDR2:
			fromBits = int(v[0])
		case nl.IPSET_ATTR_PROTO:
			m.proto = lb.Proto(v[0])
		case nl.IPSET_ATTR_PORT:
			m.port = binary.BigEndian.Uint16(v)
		case nl.IPSET_ATTR_TIMEOUT:
			timeout = binary.BigEndian.Uint32(v)
		}
	})
	m.addr, m.from = prefixOf(addr, bits), prefixOf(from, fromBits)
	return m, timeout
}

func prefixOf(a netip.Addr, bits int) netip.Prefix {
	if bits < 0 {
		bits = a.BitLen()
	}
	return netip.PrefixFrom(a, bits)
}

func parseAddr(b []byte) (a netip.Addr) {
	eachAttr(b, 0, func(_ int, v []byte) { a, _ = netip.AddrFromSlice(v) })
	return a
}

// eachAttr hands the attributes behind the first skip bytes of b to f; a broken one
// ends that. Values are at least one byte long.
func eachAttr(b []byte, skip int, f func(typ int, v []byte)) {
	for b = b[min(skip, len(b)):]; len(b) > unix.SizeofRtAttr; {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return
		}
		if n > unix.SizeofRtAttr {
			f(int(binary.NativeEndian.Uint16(b[2:]))&attrTypeMask, b[unix.SizeofRtAttr:n])
		}
		b = b[min((n+3)&^3, len(b)):]
	}
}
