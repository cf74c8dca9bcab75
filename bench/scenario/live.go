// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Live is how the lab runs a scenario, with real sockets, proxies and time. Requests,
// arrivals, work, backends and changes are those of the simulator.
type Live struct {
	// Traffic is request (default: a connection with one request on it), udp (a datagram
	// and its answer, from a new socket), connect (connections one after the other, which
	// nobody accepts), exchange (bytes to and fro on one connection), stream (as much as
	// goes on one connection) or packets (datagrams one way, from one socket). Request and udp
	// come as arrivals do, the others as fast as they can: these measure the path,
	// and their backends do not serve.
	Traffic string `json:"traffic"`
	Mode    string `json:"mode"`    // open (default) or closed: each of Workers goes on when it has an answer
	Workers int    `json:"workers"` // closed: requests at once; default 1
	Entry   string `json:"entry"`   // clusterip (default) or nodeport, from a machine outside
	// Services is how many there are, 1 to 60,000, those under test included. Where it has
	// several numbers, the lab makes curves of the path's cost over them.
	Services []int    `json:"services"`
	Seconds  Duration `json:"seconds"` // of a block where Traffic is as fast as it can; default 1s
	Rounds   int      `json:"rounds"`  // of all arms there and back; default 1
	Arms     []string `json:"arms"`    // names as in Arms, with an algorithm behind a space where the proxy has several
}

// The kinds of traffic.
const (
	Request  = "request"
	UDP      = "udp"
	Connect  = "connect"
	Exchange = "exchange"
	Streamed = "stream"
	Packets  = "packets"
)

// Arms are what the lab can measure, and which algorithms each has; nil: it has one.
var Arms = map[string][]string{
	"direct":              {"", OracleJSQ, OracleSED}, // in turn, or by the client's own count
	"lbproxy-ebpf":        {"random", "round-robin", "hash", "ip-hash", "power-of-two", LeastConnection, LeastTime},
	"lbproxy-iptables":    {"random", "round-robin", "hash", "ip-hash", "power-of-two", LeastConnection, LeastTime},
	"kube-proxy-iptables": {"random"},
	"kube-proxy-nftables": {"random"},
	"nginx":               {"round-robin", "least_conn", "hash", "random two"},
	"haproxy":             {"roundrobin", "leastconn", "source", "random(2)"},
}

// Paced says whether requests come as arrivals do.
func (l *Live) Paced() bool { return l.Traffic == Request || l.Traffic == UDP }

func (l *Live) defaults() {
	setDefault(&l.Traffic, Request)
	setDefault(&l.Mode, "open")
	setDefault(&l.Workers, 1)
	setDefault(&l.Entry, "clusterip")
	setDefault(&l.Rounds, 1)
	setDefault(&l.Seconds, Duration(1e9))
	if len(l.Services) == 0 {
		l.Services = []int{1}
	}
}

func (l *Live) check() error {
	err := errors.Join(
		oneOf(l.Traffic, Request, UDP, Connect, Exchange, Streamed, Packets),
		oneOf(l.Mode, "open", "closed"), oneOf(l.Entry, "clusterip", "nodeport"))
	if err != nil {
		return err
	}
	for _, n := range l.Services {
		if n < 1 || n > 60_000 {
			return fmt.Errorf("services: %d: want 1 to 60000", n)
		}
	}
	if l.Workers < 1 || l.Rounds < 1 || l.Seconds <= 0 {
		return errors.New("want workers, rounds and seconds above 0")
	}
	if len(l.Services) > 1 && l.Paced() {
		return errors.New("services: only one number, unless the traffic is as fast as it can")
	}
	if len(l.Arms) == 0 {
		return errors.New("arms: missing")
	}
	for _, a := range l.Arms {
		if _, _, err := Arm(a); err != nil {
			return err
		}
	}
	return nil
}

// Arm splits the name of an arm.
func Arm(text string) (name, algorithm string, err error) {
	name, algorithm, _ = strings.Cut(text, " ")
	all, known := Arms[name]
	if !known {
		return "", "", fmt.Errorf("arms: %q: no such proxy", text)
	}
	if algorithm == "" {
		return name, all[0], nil
	}
	if !slices.Contains(all, algorithm) {
		return "", "", fmt.Errorf("arms: %s has no %q: want one of %s", name, algorithm, strings.Join(all, ", "))
	}
	return name, algorithm, nil
}
