// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// leaving is the n-th masqueraded connection of a family, as it leaves.
func leaving(f lb.Family, proto lb.Proto, n int) dataplane.Flow {
	client, backend := "10.0.0.1", "10.244.0.1:8080"
	if f == lb.IPv6 {
		client, backend = "fd00::1", "[fd00:10:244::1]:8080"
	}
	return dataplane.Flow{
		Proto:   proto,
		Client:  netip.AddrPortFrom(netip.MustParseAddr(client), uint16(20000+n)),
		Backend: netip.MustParseAddrPort(backend),
	}
}

// allEntries returns what conntrack knows, with what a reservation is known by.
func allEntries() (found map[string]bool, seconds map[dataplane.Flow]uint32, err error) {
	c, err := openConntrack()
	if err != nil {
		return nil, nil, err
	}
	defer c.close()
	found, seconds = map[string]bool{}, map[dataplane.Flow]uint32{}
	for _, f := range families {
		if err := c.send(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, f, nil); err != nil {
			return nil, nil, err
		}
		err := c.receive(func(msg []byte) {
			var e entry
			if !e.parse(msg) {
				return
			}
			fl := dataplane.Flow{Proto: e.proto, Client: e.client, Backend: e.frontend}
			found[fmt.Sprintf("%v mark %#x status %#x", fl, e.mark, e.status)] = true
			seconds[fl] = bigEndian32(find(msg[nfgenLen:], nl.CTA_TIMEOUT))
		})
		if err != nil {
			return nil, nil, err
		}
	}
	return found, seconds, nil
}

// innocents makes entries that are no reservations, though each is one in some respect.
func innocents() error {
	return eachFlow([]dataplane.Flow{
		leaving(lb.IPv4, lb.TCP, 100), leaving(lb.IPv4, lb.TCP, 101), leaving(lb.IPv4, lb.TCP, 102), leaving(lb.IPv6, lb.SCTP, 103),
	}, func(c *conntrack, fl dataplane.Flow) error {
		message, mark := trackMessage(fl, reservedFor), uint32(reservedMark)
		switch fl.Client.Port() - 20000 {
		case 100: // a connection that somebody marked so, and that is translated
			to := netip.MustParseAddrPort("10.244.9.9:80")
			message = made{proto: fl.Proto, state: tcpEstablished, client: fl.Client, frontend: fl.Backend, to: to}.message()
		case 101: // one bit of the mark is another
			mark ^= 1
		case 102: // no mark
			mark = 0
		case 103: // all bits and one more
			mark |= 2
		}
		_, err := c.create(attribute(message, nl.CTA_MARK, be32(mark)), fl)
		return err
	})
}

// TestReserve: reservations are renewed and removed, all those that are to be and no other
// entry; and they last a minute.
func TestReserve(t *testing.T) {
	ownNetns(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var flows []dataplane.Flow
	for n := range 10 {
		flows = append(flows, leaving(lb.IPv4, lb.TCP, n), leaving(lb.IPv6, lb.TCP, n), leaving(lb.IPv4, lb.SCTP, n))
	}
	taken := leaving(lb.IPv4, lb.TCP, 9) // by a connection, whose entry stays as it is
	must(innocents())
	_, err := Tracker{}.Track([]dataplane.Flow{taken})
	must(err)
	before, _, err := allEntries()
	must(err)
	if len(before) != 5 {
		t.Fatalf("%d entries, want 5: %v", len(before), before)
	}

	must(Tracker{}.Reserve(flows))
	after, seconds, err := allEntries()
	must(err)
	if len(after) != len(before)+len(flows)-1 {
		t.Errorf("%d entries, want %d", len(after), len(before)+len(flows)-1)
	}
	for _, fl := range flows {
		if s := seconds[fl]; fl != taken && (s == 0 || s > reservedFor) {
			t.Errorf("%v is reserved for %d s, want at most %d", fl, s, reservedFor)
		}
	}
	if s := seconds[taken]; s <= reservedFor {
		t.Errorf("%v, which is a connection, is known for %d s", taken, s)
	}

	must(shorten(flows[0]))
	must(Tracker{}.Reserve(flows[:3]))
	after, seconds, err = allEntries()
	must(err)
	if len(after) != len(before)+3 {
		t.Errorf("%d entries, want %d: %v", len(after), len(before)+3, after)
	}
	if s := seconds[flows[0]]; s <= reservedFor/2 {
		t.Errorf("a reservation that was renewed ends in %d s", s)
	}

	full := Tracker{t.TempDir()}
	must(os.MkdirAll(filepath.Join(full.root, "net", "netfilter"), 0o755))
	for name, text := range map[string]string{"nf_conntrack_max": "20", "nf_conntrack_count": "9"} { // half of it has room for one
		must(os.WriteFile(filepath.Join(full.root, "net", "netfilter", name), []byte(text), 0o600))
	}
	if err := full.Reserve(flows[2:6]); err == nil || !strings.Contains(err.Error(), "2 of 4 connections do not fit") {
		t.Errorf("in a table that is nearly half full: error %v, want 2 of 4 that do not fit", err)
	}
	after, _, err = allEntries()
	must(err)
	if len(after) != len(before)+2 {
		t.Errorf("%d entries, want %d: %v", len(after), len(before)+2, after)
	}
	must(Tracker{}.Reserve(flows[:3]))

	if n, err := endReservations(); n != 3 || err != nil {
		t.Errorf("%d were removed, error %v, want 3", n, err)
	}
	if after, _, err = allEntries(); err != nil || fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("entries now (error %v)\n%v, before\n%v", err, after, before)
	}
}

// shorten makes a reservation end soon.
func shorten(fl dataplane.Flow) error {
	c, err := openConntrack()
	if err != nil {
		return err
	}
	defer c.close()
	attrs := attribute(tupleAttr(nl.CTA_TUPLE_ORIG, fl.Proto, fl.Client, fl.Backend), nl.CTA_TIMEOUT, be32(reservedFor/4))
	return c.request(nl.IPCTNL_MSG_CT_NEW, 0, lb.FamilyOf(fl.Client.Addr()), attrs)
}

// TestCleanupReservations: cleanup removes them and says so.
func TestCleanupReservations(t *testing.T) {
	ownNetns(t)
	if err := innocents(); err != nil {
		t.Fatal(err)
	}
	before, _, err := allEntries()
	if err != nil {
		t.Fatal(err)
	}
	if err := (Tracker{}).Reserve([]dataplane.Flow{leaving(lb.IPv4, lb.TCP, 1), leaving(lb.IPv6, lb.TCP, 2)}); err != nil {
		t.Fatal(err)
	}
	removed, err := Cleanup(Options{LockFile: t.TempDir() + "/lock"})
	if want := "[2 entries of conntrack that reserve source ports]"; err != nil || fmt.Sprint(removed) != want {
		t.Errorf("removed %v, error %v, want %s", removed, err, want)
	}
	if after, _, err := allEntries(); err != nil || fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("entries now (error %v)\n%v, before\n%v", err, after, before)
	}
}
