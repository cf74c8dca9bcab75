// SPDX-License-Identifier: Apache-2.0

// Package lb holds the nouns of lbproxy: what a Service offers, who answers and
// in which order they were described. Every type is a plain value; nothing in
// this package reads a clock, a socket or a kernel.
package lb

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
)

// Proto is an IP protocol number.
type Proto uint8

// The protocols of a Service port.
const (
	TCP  Proto = 6
	UDP  Proto = 17
	SCTP Proto = 132
)

// String returns the Kubernetes spelling: TCP, UDP or SCTP.
func (p Proto) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return fmt.Sprintf("proto-%d", uint8(p))
}

// ParseProto reads a protocol name in any case; the empty string is TCP, as in
// the Kubernetes API.
func ParseProto(s string) (Proto, error) {
	switch strings.ToUpper(s) {
	case "", "TCP":
		return TCP, nil
	case "UDP":
		return UDP, nil
	case "SCTP":
		return SCTP, nil
	}
	return 0, fmt.Errorf("protocol %q: want TCP, UDP or SCTP", s)
}

// Family is an IP family, by its version number.
type Family uint8

// The two families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// String returns IPv4 or IPv6, as Service.spec.ipFamilies spells them.
func (f Family) String() string {
	switch f {
	case IPv4:
		return "IPv4"
	case IPv6:
		return "IPv6"
	}
	return fmt.Sprintf("family-%d", uint8(f))
}

// FamilyOf returns the family of addr; a v4-mapped IPv6 address is IPv6.
func FamilyOf(addr netip.Addr) Family {
	if addr.Is4() {
		return IPv4
	}
	return IPv6
}

// Unspecified returns 0.0.0.0 or ::.
func (f Family) Unspecified() netip.Addr {
	if f == IPv4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// Object names a Kubernetes Service object.
type Object struct {
	Namespace, Name string
}

// String returns namespace/name.
func (o Object) String() string { return o.Namespace + "/" + o.Name }

// ServiceName names one port of one Service in one family: the unit that is
// balanced. It is comparable.
type ServiceName struct {
	Object
	Port   string // the port's name; empty when it has none
	Proto  Proto
	Family Family
}

// String returns namespace/name:port/PROTO/FAMILY.
func (n ServiceName) String() string {
	port := ""
	if n.Port != "" {
		port = ":" + n.Port
	}
	return n.Object.String() + port + "/" + n.Proto.String() + "/" + n.Family.String()
}

// ParseServiceName reads what String wrote.
func ParseServiceName(s string) (ServiceName, error) {
	parts := strings.Split(s, "/")
	if len(parts) != 4 {
		return ServiceName{}, fmt.Errorf("service name %q: want namespace/name[:port]/PROTO/FAMILY", s)
	}
	proto, err := ParseProto(parts[2])
	if err != nil {
		return ServiceName{}, fmt.Errorf("service name %q: %w", s, err)
	}
	n := ServiceName{Object: Object{Namespace: parts[0]}, Proto: proto}
	n.Name, n.Port, _ = strings.Cut(parts[1], ":")
	switch parts[3] {
	case "IPv4":
		n.Family = IPv4
	case "IPv6":
		n.Family = IPv6
	default:
		return ServiceName{}, fmt.Errorf("service name %q: family %q: want IPv4 or IPv6", s, parts[3])
	}
	return n, nil
}

// Compare orders names by namespace, name, port, protocol, family.
func (n ServiceName) Compare(o ServiceName) int {
	return cmp.Or(
		strings.Compare(n.Namespace, o.Namespace),
		strings.Compare(n.Name, o.Name),
		strings.Compare(n.Port, o.Port),
		cmp.Compare(n.Proto, o.Proto),
		cmp.Compare(n.Family, o.Family),
	)
}
