package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// The transport protocols of a [Request].
const (
	TCP = "tcp"
	UDP = "udp"

	// Quiet is TCP to a server that says nothing but what it echoes.
	Quiet = "tcp-quiet"
)

// Kind classifies the outcome of a request the way a client would tell it.
type Kind string

// The outcomes.
const (
	OK          Kind = "ok"          // the server answered
	Refused     Kind = "refused"     // ECONNREFUSED
	Timeout     Kind = "timeout"     // no answer within Request.Timeout
	Unreachable Kind = "unreachable" // EHOSTUNREACH or ENETUNREACH
	Failed      Kind = "error"       // anything else: reset, EPERM, wrong payload
)

// Request describes one client socket and what to send on it.
type Request struct {
	Proto     string         // TCP, UDP or Quiet
	To        netip.AddrPort // an IPv4-mapped address implies MappedV6
	From      netip.AddrPort // optional bind address; address or port may be zero
	Connected bool           // UDP: connect and send, instead of sendto and recvfrom
	MappedV6  bool           // reach an IPv4 To from an AF_INET6 socket
	Timeout   time.Duration  // for the whole exchange; 0 means 2 s
	Payload   []byte         // echoed by the server and compared; for UDP a token is made when empty
}

// Result is what one exchange showed. Addresses are never IPv4-mapped.
type Result struct {
	Kind        Kind
	Err         string         // empty when Kind is OK
	Backend     string         // name of the host that answered
	Seen        netip.AddrPort // the client, as the server saw it
	ServerLocal netip.AddrPort // the server's own end
	Local       netip.AddrPort // the client's own end (getsockname)
	Peer        netip.AddrPort // getpeername, or recvfrom's source when unconnected
	Took        time.Duration  // from connect or send to the complete answer
}

// Paced is an exchange that should begin at a certain time.
type Paced struct {
	Due, Begun time.Time
	Result
}

// OpError is a failed operation on a held socket.
type OpError struct {
	Op   string
	Kind Kind
	Msg  string
}

// Error implements error.
func (e *OpError) Error() string { return fmt.Sprintf("%s: %s: %s", e.Op, e.Kind, e.Msg) }

// AnyAddr is the wildcard address of both families with the given port. An
// AddrPort without an address, of which netip's encoding loses the port, means
// the same.
func AnyAddr(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.IPv6Unspecified(), port) }

func anyIfNone(ap netip.AddrPort) netip.AddrPort {
	if !ap.Addr().IsValid() && ap.Port() != 0 {
		return AnyAddr(ap.Port())
	}
	return ap
}

const (
	defaultTimeout = 2 * time.Second
	bulkTimeout    = 30 * time.Second
	callGrace      = 3 * time.Second // for the helper to answer after its own deadline
)

// verb is an operation of the helper.
type verb string

const (
	verbServe    verb = "serve"
	verbStop     verb = "stop"
	verbDial     verb = "dial"
	verbPaced    verb = "paced"
	verbOpen     verb = "open"
	verbOpenUDP  verb = "open-udp"
	verbPing     verb = "ping"
	verbBulk     verb = "bulk"
	verbExchange verb = "exchange"
	verbClose    verb = "close"
)

// call is one line from the lab to a helper.
type call struct {
	ID     uint64
	Verb   verb
	Budget time.Duration  `json:",omitempty"` // for the whole call; 0 means the verb's default
	Req    Request        `json:",omitzero"`
	Addr   netip.AddrPort `json:",omitzero"` // verbServe, verbStop
	Conn   uint64         `json:",omitempty"`
	N      int            `json:",omitempty"` // dials or bytes
	Start  time.Time      `json:",omitzero"`  // verbPaced
	Every  time.Duration  `json:",omitempty"` // verbPaced
	How    string         `json:",omitempty"` // "fin" or "rst"
}

// reply is one line from a helper to the lab, in any order.
type reply struct {
	ID      uint64
	Err     string   `json:",omitempty"` // the request itself could not be carried out
	Conn    uint64   `json:",omitempty"`
	Results []Result `json:",omitempty"`
	Paced   []Paced  `json:",omitempty"`
}

// banner is the line with which every server starts its answer.
func banner(host string, client, local netip.AddrPort) string {
	return fmt.Sprintf("%s %s %s\n", host, unmap(client), unmap(local))
}

// parseBanner is the inverse of banner, for a line without its newline.
func parseBanner(line string, r *Result) error {
	f := strings.Fields(line)
	if len(f) != 3 {
		return fmt.Errorf("banner %q: want 3 fields", line)
	}
	var err error
	if r.Seen, err = netip.ParseAddrPort(f[1]); err != nil {
		return fmt.Errorf("banner %q: %w", line, err)
	}
	if r.ServerLocal, err = netip.ParseAddrPort(f[2]); err != nil {
		return fmt.Errorf("banner %q: %w", line, err)
	}
	r.Backend = f[0]
	return nil
}

func unmap(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
