// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// everything returns chains with every form of rule that there is in a family, by table.
func everything(t *testing.T, f lb.Family) change {
	t.Helper()
	c := change{natTable: &batch{}, filterTable: &batch{}}
	for i, name := range algo.Names() {
		for _, n := range []int{1, 3, 20, 70} {
			p := newPool(t, name, f, upTo(n), nil)
			p.name = hashName("C-", name, fmt.Sprint(n))
			p.balance.HashKey = lb.HashKey(i % 3)
			chains, _ := renderPool(p)
			c[natTable].put = append(c[natTable].put, chains...)
		}
	}
	p := newPool(t, "least-connection", f, upTo(3), []uint16{1, 2, 3})
	svc := &dataplane.Service{Name: lb.ServiceName{Object: lb.Object{Namespace: "a", Name: "b"}, Port: "c", Proto: lb.TCP, Family: f}}
	svc.Terms.Affinity = 3 * time.Hour
	svc.Cluster = dataplane.Pool{Backends: p.backends, Table: p.table}
	svc.Balance.Algorithm = "least-connection"
	at := netip.MustParseAddrPort("10.96.0.1:80")
	if f == lb.IPv6 {
		at = netip.MustParseAddrPort("[fd00:96::1]:80")
	}
	svc.Frontends = []lb.Frontend{
		{FrontendKey: lb.FrontendKey{Addr: at, Proto: lb.TCP}, Type: lb.LoadBalancer, Ranged: true, Masquerade: lb.MasqueradeAlways},
		{FrontendKey: lb.FrontendKey{Addr: at, Proto: lb.TCP}, Type: lb.ExternalIP, Outside: lb.ScopeLocal, Masquerade: lb.MasqueradeOffCluster},
	}
	svc.Local = svc.Cluster
	c[natTable].put = append(c[natTable].put, render(svc, &facts{bpf: true, pods: []string{"-i cali+", "-s " + single(at.Addr()).String()}}, [2][]float64{}).chains...)
	root := roots{
		family: f, mark: 0x4000, randomFully: true, localhost: true,
		vips: "LBP-T-0", ports: "LBP-T-1", hairpins: "LBP-T-2",
		local: lb.LocalDetector{Mode: lb.LocalInterfaceNamePrefix, Interface: "cali"},
	}
	c[natTable].put = append(c[natTable].put, root.nat()...)
	c[natTable].put = append(c[natTable].put,
		chain{"LBP-T-0", []string{"-d " + at.Addr().String() + " -p tcp -m tcp --dport 64:127 -g LBP-T-1", "-d " + netip.PrefixFrom(at.Addr(), 9).Masked().String() + " -g LBP-T-1"}},
		chain{"LBP-T-1", []string{"-p udp -m udp --dport 80 -j RETURN", "-p sctp -m sctp --dport 80 -j RETURN"}}, chain{name: "LBP-T-2"})
	c[filterTable].put = root.filter()
	return c
}

// makeSets makes the ipsets that rules name.
func makeSets(t *testing.T, c change) {
	t.Helper()
	s, err := openSets()
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for _, b := range c {
		for _, ch := range b.put {
			for _, text := range ch.rules {
				words := strings.Fields(text)
				for i, w := range words {
					if w != "--match-set" && w != "--add-set" && w != "--del-set" {
						continue
					}
					spec := setSpec{name: words[i+1], typ: hashIP, family: lb.IPv4}
					if strings.HasSuffix(spec.name, "-6") || strings.HasPrefix(spec.name, "LBP-A6") {
						spec.family = lb.IPv6
					}
					switch words[i+2] {
					case "dst,dst":
						spec.typ = hashIPPort
					case "dst,dst,src":
						spec.typ = hashIPPortNet
					case "src":
						spec.timeout = 10800
					}
					if err := s.create(spec); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
}

// TestRulesAreSavedAsRendered restores every form of rule and reads it back: what the
// program prints is equal to what was rendered.
func TestRulesAreSavedAsRendered(t *testing.T) {
	eachRunner(t, func(t *testing.T, r *runner) {
		c := everything(t, r.family)
		makeSets(t, c)
		mustRestore(t, r, c)
		rules := 0
		for tab, b := range c {
			saved, err := r.chains(context.Background(), tab)
			if err != nil {
				t.Fatal(err)
			}
			for _, ch := range b.put {
				if len(saved[ch.name]) != len(ch.rules) {
					t.Fatalf("chain %s: saved %q, rendered %q", ch.name, saved[ch.name], ch.rules)
				}
				for i, text := range ch.rules {
					rules++
					if want, got := mustParse(t, text), mustParse(t, saved[ch.name][i]); !got.equal(want) {
						t.Errorf("chain %s, rule %d\nrendered %s\nsaved    %s\nread as  %s\nand      %s", ch.name, i, text, saved[ch.name][i], want.form, got.form)
					}
				}
			}
		}
		t.Logf("%d rules", rules)
	})
}

// packetPool makes a pool of UDP that connections to the address of caller go to, and
// a tracer of it.
func packetPool(t *testing.T, r *runner, p poolSpec) *tracer {
	t.Helper()
	p.to = func(i int) string { return "-p udp -j DNAT --to-destination " + p.backends[i].Addr.String() }
	chains, _ := renderPool(p)
	mustRestore(t, r, change{natTable: &batch{put: chains}})
	tr, err := newTracer(chains)
	if err != nil {
		t.Fatal(err)
	}
	do(t, r.program, "-t", "nat", "-F", "OUTPUT")
	do(t, r.program, "-t", "nat", "-A", "OUTPUT", "-p", "udp", "-d", caller(p.family, 0).dst.Addr().String(), "-j", p.name)
	return tr
}

// allLocal makes a namespace take all packets for itself.
func allLocal(t *testing.T) {
	t.Helper()
	do(t, "ip", "link", "set", "lo", "up")
	do(t, "ip", "route", "add", "local", "10.0.0.0/8", "dev", "lo")
	do(t, "ip", "-6", "route", "add", "local", "fd00::/16", "dev", "lo")
}

// send sends a datagram as caller i, in the thread's namespace, and returns its packet.
func send(t *testing.T, f lb.Family, i int) *packet {
	t.Helper()
	pk := caller(f, i)
	pk.proto = lb.UDP
	d := net.Dialer{
		LocalAddr: net.UDPAddrFromAddrPort(pk.src),
		Control: func(_, _ string, c syscall.RawConn) (err error) {
			errControl := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
			})
			if err == nil {
				err = errControl
			}
			return err
		},
	}
	conn, err := d.Dial("udp", pk.dst.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	return pk
}

// served returns the backend of each client that the kernel has a connection of.
func servedBy(t *testing.T, f lb.Family) map[netip.AddrPort]netip.AddrPort {
	t.Helper()
	c, err := openConntrack()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	to := map[netip.AddrPort]netip.AddrPort{}
	if err := c.flows(f, lb.UDP, func(fl flow) { to[fl.client] = fl.backend }); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestPacketsAreHashedAsTraced: the kernel sends each caller to the backend that the
// tracer says, for all keys.
func TestPacketsAreHashedAsTraced(t *testing.T) {
	eachRunner(t, func(t *testing.T, r *runner) {
		allLocal(t)
		first := 0
		for _, key := range []lb.HashKey{lb.HashSource, lb.HashSourcePort, lb.HashTuple} {
			for _, prefix := range []uint8{0, 30} {
				for _, n := range []int{5, 70} {
					p := hashPool(t, key, r.family, upTo(n))
					p.balance.Prefix4, p.balance.Prefix6 = prefix, prefix*4
					tr := packetPool(t, r, p)
					want := map[netip.AddrPort]netip.AddrPort{}
					for i := range 60 {
						pk := send(t, r.family, first+i)
						want[pk.src] = tr.walk(p.name, pk).to
					}
					first += 60
					got := servedBy(t, r.family)
					for client, to := range want {
						if got[client] != to {
							t.Errorf("%s, prefix %d, %d backends: %s goes to %s, want %s", key, prefix, n, client, got[client], to)
						}
					}
				}
			}
		}
	})
}

// TestPacketsTakeTurns: connections go where the table says, in exact turns. When another
// chain is changed turns go on with nft; legacy writes the whole table, and they begin anew.
func TestPacketsTakeTurns(t *testing.T) {
	eachRunner(t, func(t *testing.T, r *runner) {
		allLocal(t)
		for k, weights := range [][]uint16{{1, 1, 1, 1, 1}, {5, 3, 0, 1}} {
			p := newPool(t, "round-robin", r.family, upTo(len(weights)), weights)
			packetPool(t, r, p)
			var clients, want []netip.AddrPort
			for seq := range 25 {
				clients = append(clients, send(t, r.family, 1000*k+seq).src)
				want = append(want, p.backends[algo.Pick(p.table, algo.Input{Seq: uint32(seq)})].Addr)
			}
			mustRestore(t, r, change{natTable: &batch{put: []chain{{name: "LBP-OTHER", rules: []string{"-j RETURN"}}}}})
			next := 25
			if r.backend() == legacyBackend {
				next = 0
			}
			for seq := range 7 {
				clients = append(clients, send(t, r.family, 1000*k+100+seq).src)
				want = append(want, p.backends[algo.Pick(p.table, algo.Input{Seq: uint32(next + seq)})].Addr)
			}
			got := servedBy(t, r.family)
			for i, client := range clients {
				if got[client] != want[i] {
					t.Errorf("weights %v: connection %d goes to %s, want %s", weights, i, got[client], want[i])
				}
			}
		}
	})
}

// TestPacketsAreDrawnByShares counts where connections go, within five standard
// deviations.
func TestPacketsAreDrawnByShares(t *testing.T) {
	const sent = 1000
	eachRunner(t, func(t *testing.T, r *runner) {
		allLocal(t)
		weights := make([]uint16, 20)
		for i := range weights {
			weights[i] = uint16(i)
		}
		p := newPool(t, "random", r.family, upTo(20), weights)
		packetPool(t, r, p)
		for i := range sent {
			send(t, r.family, i)
		}
		count := map[netip.AddrPort]int{}
		for _, to := range servedBy(t, r.family) {
			count[to]++
		}
		for i, share := range algo.Shares(p.table) {
			got := float64(count[p.backends[i].Addr])
			if math.Abs(got-sent*share) > 5*math.Sqrt(sent*share*(1-share)) {
				t.Errorf("backend %d has %.0f of %d connections, want %.0f", i, got, sent, sent*share)
			}
		}
		if n := len(count); n > 19 {
			t.Errorf("%d backends have connections, want at most 19", n)
		}
	})
}
