// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
	"github.com/lbproxy/lbproxy/internal/server"
)

// list is something to show, as items for programs and rows for people.
type list struct {
	what   string
	items  any // a slice, not nil
	header []string
	rows   [][]string
}

func (l list) table(w io.Writer) error { return writeTable(w, l.header, l.rows) }

// selectServices returns the Services of a namespace, or all, sorted by name.
func selectServices(views []dataplane.ServiceView, namespace string) ([]named, error) {
	var svcs []named
	for _, v := range views {
		n, err := lb.ParseServiceName(v.Name)
		if err != nil {
			return nil, err
		}
		// Programs should find a list where there is one, even an empty one.
		v.Frontends = append([]dataplane.FrontendView{}, v.Frontends...)
		v.Backends = append([]dataplane.BackendView{}, v.Backends...)
		if namespace == "" || n.Namespace == namespace {
			svcs = append(svcs, named{n, v})
		}
	}
	slices.SortFunc(svcs, func(a, b named) int { return a.Compare(b.ServiceName) })
	return svcs, nil
}

// nameHeader and nameCells are the columns that say which Service port it is.
var nameHeader = []string{"NAMESPACE", "NAME", "PORT", "PROTO", "FAMILY"}

func nameCells(n lb.ServiceName) []string {
	return []string{n.Namespace, n.Name, orDash(n.Port), n.Proto.String(), n.Family.String()}
}

func listServices(svcs []named) list {
	l := list{
		what:   "services",
		header: append(slices.Clone(nameHeader), "ALGORITHM", "FRONTENDS", "BACKENDS", "LIVE", "OPENED", "FAILED", "REJECTED"),
	}
	items := make([]dataplane.ServiceView, 0, len(svcs))
	for _, s := range svcs {
		items = append(items, s.ServiceView)
		active, sum := 0, dataplane.BackendView{}
		for _, b := range s.Backends {
			if b.State != stateLeaving {
				active++
			}
			sum.Live += b.Live
			sum.Opened += b.Opened
			sum.Failed += b.Failed
		}
		l.rows = append(l.rows, append(nameCells(s.ServiceName), algorithm(s.ServiceView), addresses(s.Frontends),
			strconv.Itoa(active), number(sum.Live), number(sum.Opened), number(sum.Failed), number(s.Rejected)))
	}
	l.items = items
	return l
}

// algorithm names how a Service is balanced; ~ stands before what is only approximated.
func algorithm(s dataplane.ServiceView) string {
	name := orDash(cmp.Or(s.Algorithm, s.Kind))
	if s.Approximation != "" {
		return "~" + name
	}
	return name
}

// maxAddresses is how many frontends a line shows.
const maxAddresses = 3

// addresses joins frontends for people. A NodePort's address is any of the node's.
func addresses(fes []dataplane.FrontendView) string {
	var shown []string
	for _, fe := range fes {
		addr, _, _ := strings.Cut(fe.Address, "/")
		if ap, err := netip.ParseAddrPort(addr); err == nil && ap.Addr().IsUnspecified() {
			addr = "*:" + strconv.Itoa(int(ap.Port()))
		}
		shown = append(shown, addr)
	}
	if more := len(shown) - maxAddresses; more > 0 {
		return fmt.Sprintf("%s + %d more", strings.Join(shown[:maxAddresses], ","), more)
	}
	return orDash(strings.Join(shown, ","))
}

// backendItem is a backend of a Service for programs.
type backendItem struct {
	Service string `json:"service"`
	dataplane.BackendView
	Health *server.Verdict `json:"health,omitempty"` // none: it is not watched, or no agent runs
}

// counterHeader and counters are the columns that say how a backend fares.
var counterHeader = []string{"STATE", "POOLS", "LIVE", "OPENED", "CLOSED", "FAILED", "LATENCY", "WEIGHT", "EXPECTED", "SHARE"}

func counters(b dataplane.BackendView) []string {
	state := b.State
	if b.Starting {
		state = "starting" // slowly: what is expected is its most
	}
	return []string{
		state, orDash(b.Pools), number(b.Live), number(b.Opened), number(b.Closed), number(b.Failed),
		latency(time.Duration(b.LatencyMicros) * time.Microsecond), weight(b), percent(b.Expected), percent(b.Share),
	}
}

// weight writes a backend's weight, if it is known: with 0 nothing would be expected.
func weight(b dataplane.BackendView) string {
	if b.Weight == 0 && b.Expected > 0 {
		return "-"
	}
	return number(uint64(b.Weight))
}

// percent writes a part of 1.
func percent(part float64) string { return strconv.FormatFloat(100*part, 'f', 1, 64) + "%" }

// latency writes a moving average; 0 is none.
func latency(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return d.String()
}

func listBackends(svcs []named, known opinions) list {
	l := list{
		what:   "backends",
		header: slices.Concat(nameHeader, []string{"BACKEND"}, counterHeader, []string{"HEALTH"}),
	}
	items := []backendItem{}
	for _, s := range svcs {
		for _, b := range backendItems(s, known) {
			items = append(items, b)
			l.rows = append(l.rows, slices.Concat(nameCells(s.ServiceName), []string{b.Address}, counters(b.BackendView), []string{oneCell(opinion(b.Health))}))
		}
	}
	l.items = items
	return l
}

// compareAddresses orders 10.0.0.9:80 before 10.0.0.10:80.
func compareAddresses(a, b string) int {
	x, errX := netip.ParseAddrPort(a)
	y, errY := netip.ParseAddrPort(b)
	if errX != nil || errY != nil {
		return strings.Compare(a, b)
	}
	return x.Compare(y)
}

// connectionItem is a connection for programs, with the Service it belongs to.
type connectionItem struct {
	Service string `json:"service,omitempty"`
	dataplane.ConnectionView
	Idle string `json:"idle"` // as time.Duration prints it
}

// listConnections shows conns, sorted. If there is a namespace, svcs are its
// Services and other connections are left out.
func listConnections(conns []dataplane.ConnectionView, svcs []named, namespace string) list {
	owners := map[string]string{}
	for _, s := range svcs {
		for _, fe := range s.Frontends {
			owners[fe.Address] = s.ServiceView.Name
		}
	}
	items := []connectionItem{}
	for _, c := range conns {
		owner := owners[frontendOf(c, owners)]
		if owner != "" || namespace == "" {
			items = append(items, connectionItem{owner, c, c.Idle.Round(time.Second).String()})
		}
	}
	slices.SortFunc(items, func(a, b connectionItem) int {
		return cmp.Or(strings.Compare(a.Service, b.Service), compareAddresses(a.Frontend, b.Frontend),
			compareAddresses(a.Client, b.Client), compareAddresses(a.Backend, b.Backend), strings.Compare(a.Proto, b.Proto))
	})
	l := list{
		what:   "connections",
		items:  items,
		header: []string{"SERVICE", "PROTO", "CLIENT", "FRONTEND", "BACKEND", "STATE", "IDLE"},
	}
	for _, c := range items {
		l.rows = append(l.rows, []string{orDash(c.Service), c.Proto, c.Client, c.Frontend, c.Backend, c.State, c.Idle})
	}
	return l
}

// frontendOf returns the frontend that c came to, as a Service names it: at a
// NodePort, c has the address of the node.
func frontendOf(c dataplane.ConnectionView, owners map[string]string) string {
	exact := c.Frontend + "/" + c.Proto
	ap, err := netip.ParseAddrPort(c.Frontend)
	if _, known := owners[exact]; known || err != nil {
		return exact
	}
	any := netip.AddrPortFrom(lb.FamilyOf(ap.Addr()).Unspecified(), ap.Port())
	return any.String() + "/" + c.Proto
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }
