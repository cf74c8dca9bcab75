// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"time"
)

// Balance is how a Service chooses a backend for a new connection. It is
// comparable. Its zero value is the cluster's default in all but Signal, whose
// default is SignalFirstByte.
type Balance struct {
	Algorithm string        // an algorithm's name; empty: the cluster default
	HashKey   HashKey       // of algorithm hash
	Prefix4   uint8         // of ip-hash: leading bits of an IPv4 source that count, 1..32; 0: all
	Prefix6   uint8         // the same of IPv6, 1..128; 0: all
	Signal    Signal        // of least-time
	SlowStart time.Duration // how long a new backend takes to get its full share; 0: the cluster default
}

// Part is a part of a Balance that not every algorithm heeds.
type Part uint8

// The parts; 0 stands for what every algorithm heeds.
const (
	PartHashKey Part = iota + 1
	PartPrefix
	PartSignal
	PartSlowStart
)

// Matters tells whether p has an effect with the algorithm of the given name.
func (p Part) Matters(algorithm string) bool {
	switch p {
	case PartHashKey:
		return algorithm == "hash"
	case PartPrefix:
		return algorithm == "ip-hash"
	case PartSignal:
		return algorithm == "least-time"
	case PartSlowStart:
		return algorithm != "hash" && algorithm != "ip-hash"
	}
	return true
}

// The bounds of a slow start.
const (
	MinSlowStart = 100 * time.Millisecond
	MaxSlowStart = time.Hour
)

// ParseSlowStart reads a duration from MinSlowStart to MaxSlowStart, or 0 for none.
func ParseSlowStart(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%s: want a duration such as 30s", Quote(text))
	}
	if d != 0 && (d < MinSlowStart || d > MaxSlowStart) {
		return 0, fmt.Errorf("%s: want 0s, or from %s to %s", Brief(text), MinSlowStart, MaxSlowStart)
	}
	return d, nil
}

// NoSlowStart as Balance.SlowStart gives new backends their full share at once.
const NoSlowStart time.Duration = -1

// HashKey says what of a connection is hashed. The values are shared with the
// kernel.
type HashKey uint8

// The hash keys. Ports that are not known yet when a socket connects are replaced
// by a number that is the socket's own.
const (
	HashSource     HashKey = iota // source address
	HashSourcePort                // source address and port
	HashTuple                     // both addresses, both ports, protocol
)

// String returns the annotation's spelling.
func (k HashKey) String() string {
	return [...]string{"source-ip", "source-ip-port", "5-tuple"}[k]
}

// Signal says which time of a connection least-time measures. The values are
// shared with the kernel.
type Signal uint8

// The signals: until the connection is established, until the backend's first
// byte, and until the connection has ended.
const (
	SignalConnect Signal = iota
	SignalFirstByte
	SignalLastByte
)

// String returns the annotation's spelling.
func (s Signal) String() string {
	return [...]string{"connect", "first-byte", "last-byte"}[s]
}
