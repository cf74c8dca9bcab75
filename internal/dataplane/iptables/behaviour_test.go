// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

const (
	vip4, vip6   = "10.96.0.10:80", "[fd00:10:96::10]:80"
	port4, port6 = "0.0.0.0:30080", "[::]:30080"
	node4, node6 = "172.30.0.11:30080", "[fd00:30::11]:30080"
	empty4       = "10.96.0.11:80"
)

// callers are a pod, a process of the node, and somebody who is masqueraded.
var callers = []string{"client1", lab.Node, lab.Outside}

// web returns a Service of both families at cluster IPs and node ports.
func (r *rig) web(proto lb.Proto, hosts ...string) []*dataplane.Service {
	return []*dataplane.Service{
		r.svc("web", proto, "random", r.pods(lb.IPv4, hosts...), vip4, port4),
		r.svc("web", proto, "random", r.pods(lb.IPv6, hosts...), vip6, port6),
	}
}

// TestConnectionsLive changes a Service a hundred times, up to one without endpoints, and
// starts the agent again, while connections that it balanced go on.
func TestConnectionsLive(t *testing.T) {
	r := newRig(t, labtest.New(t), "nft", nil)
	r.sync(dataplane.Delta{Full: true, Put: r.web(lb.TCP, "backend1", "remote1")})
	held := map[string]*lab.Conn{}
	for _, from := range callers {
		for _, to := range []string{vip4, vip6, node4, node6} {
			held[from+" to "+to] = r.open(from, lab.TCP, to)
		}
	}
	alive := func(when string) {
		t.Helper()
		for name, c := range held {
			if err := c.Ping(t.Context()); err != nil {
				t.Errorf("%s: the connection from %s: %v", when, name, err)
			}
		}
	}
	sets := [][]string{{"backend2"}, {"backend1", "backend2", "backend3"}, {}, {"remote1"}, {"backend3", "remote1"}}
	for i := range 100 {
		r.sync(dataplane.Delta{Put: r.web(lb.TCP, sets[i%len(sets)]...)})
		if i%20 == 0 {
			alive(fmt.Sprintf("after %d changes", i+1))
		}
	}
	alive("after all changes")
	r.stop()
	alive("without an agent")
	r.start()
	alive("after a start")
	writes := r.dp.Writes()
	r.sync(dataplane.Delta{Full: true, Put: r.web(lb.TCP, sets[99%len(sets)]...)})
	alive("after the first Sync")
	t.Logf("a start wrote %d chains and members", r.dp.Writes()-writes)
	r.sync(dataplane.Delta{Full: true})
	alive("after the Service was deleted")
}

// TestNodeChanges has the Node tell other addresses and other ranges of its pods, without
// a Sync: node ports move, and who was a pod is masqueraded.
func TestNodeChanges(t *testing.T) {
	r := newRig(t, labtest.New(t), "nft", func(o *Options) {
		o.NodePorts, o.Local = lb.NodePortAddresses{Primary: true}, lb.LocalDetector{Mode: lb.LocalNodeCIDR}
	})
	node := func(addr netip.Addr, pods netip.Prefix) lb.Node {
		return lb.Node{Known: true, Addrs: []netip.Addr{addr}, PodCIDRs: []netip.Prefix{pods}}
	}
	served := func(addr netip.Addr) bool {
		res := r.Lab.Host(lab.Outside).Dial(t.Context(), lab.Request{
			Proto: lab.TCP, To: netip.AddrPortFrom(addr, 30080), Timeout: labtest.Silence,
		})
		return res.Kind == lab.OK
	}
	keepsAddress := func() bool { return r.dial("client2", lab.TCP, vip4).Seen.Addr() == r.Lab.Host("client2").Addr4 }
	r.dp.SetNode(node(lab.NodeAddr4, lab.NodePods4))
	r.sync(dataplane.Delta{Full: true, Put: r.web(lb.TCP, "backend1")})
	r.answered("before", lab.Outside, lab.TCP, node4)
	if served(lab.NodeSecond4) || !keepsAddress() {
		t.Error("before: want node ports at the first address only, and pods that are not masqueraded")
	}
	r.dp.SetNode(node(lab.NodeSecond4, lab.Node2Pods4))
	labtest.Within(t, labtest.Patience, "the Node's new addresses and ranges are heeded", func() bool {
		return !served(lab.NodeAddr4) && served(lab.NodeSecond4) && !keepsAddress()
	})
}

// TestRepair damages what lbproxy wrote: it is there again about a second later, and
// connections go on meanwhile.
func TestRepair(t *testing.T) {
	n := labtest.New(t)
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			r := newRig(t, n, backend, nil)
			r.sync(dataplane.Delta{Full: true, Put: append(r.web(lb.TCP, "backend1", "backend2"), r.svc("empty", lb.TCP, "random", nil, empty4))})
			held := r.open(lab.Outside, lab.TCP, vip4)
			before := r.saved(backend)
			for _, damage := range [][]string{
				{"iptables -t nat -F"}, {"ip6tables -t nat -F"}, {"iptables -t filter -F"},
				{"iptables -t nat -F", "iptables -t nat -X", "iptables -F", "iptables -X"},
				{"iptables -t nat -D PREROUTING -j " + servicesChain},
				{"iptables -t nat -F " + servicesChain},
				{"iptables -t filter -F " + filterChain},
			} {
				what := strings.Join(damage, "; ")
				func() {
					r.dp.Dataplane.mu.Lock() // no repair before all of it is done
					defer r.dp.Dataplane.mu.Unlock()
					for _, line := range damage {
						words := strings.Fields(line)
						program := strings.Replace(words[0], "tables", "tables-"+backend, 1)
						r.output(program, append([]string{"-w"}, words[1:]...)...)
					}
				}()
				began := time.Now()
				var got string
				t.Cleanup(func() {
					if got != before {
						t.Logf("after %s the rules were\n%s\nbefore\n%s", what, got, before)
					}
				})
				labtest.Within(t, labtest.Patience, "the repair after "+what, func() bool {
					r.dp.Dataplane.mu.Lock() // not in the middle of it
					defer r.dp.Dataplane.mu.Unlock()
					got = r.saved(backend)
					return got == before
				})
				t.Logf("%s: repaired after %v", what, time.Since(began).Round(time.Millisecond))
				for _, to := range []string{vip4, vip6, node4, node6} {
					r.answered(what, "client2", lab.TCP, to)
				}
				if got := r.dial("client1", lab.TCP, empty4); got.Kind != lab.Refused {
					t.Errorf("%s: without endpoints: %s, want refused", what, got.Kind)
				}
				if err := held.Ping(t.Context()); err != nil {
					t.Errorf("%s: an established connection: %v", what, err)
				}
			}
		})
	}
}

var counters = regexp.MustCompile(`\[\d+:\d+\]`)

// saved returns all rules of both families, without comments and counters, sorted by
// chain where the order has no meaning.
func (r *rig) saved(backend string) string {
	r.t.Helper()
	var out []string
	for _, program := range []string{"iptables-" + backend + "-save", "ip6tables-" + backend + "-save"} {
		var lines []string
		for line := range strings.Lines(r.output(program)) {
			if !strings.HasPrefix(line, "#") {
				lines = append(lines, counters.ReplaceAllString(line, ""))
			}
		}
		slices.SortStableFunc(lines, func(a, b string) int { return strings.Compare(chainOf(a), chainOf(b)) })
		out = append(out, lines...)
	}
	return strings.Join(out, "")
}

// chainOf returns what orders a line of iptables-save: the chain of a rule.
func chainOf(line string) string {
	if rest, ok := strings.CutPrefix(line, "-A "); ok {
		name, _, _ := strings.Cut(rest, " ")
		return "-A " + name
	}
	return line
}

// TestOthersStay has rules, chains and an ipset of somebody else: they are the same
// before, during and after a life of a Dataplane.
func TestOthersStay(t *testing.T) {
	n := labtest.New(t)
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			r := &rig{Net: n, t: t}
			r.foreign(backend)
			before := r.saved(backend)
			mine := newRig(t, n, backend, nil)
			check := func(when string, after string) {
				t.Helper()
				if after != before {
					t.Errorf("%s the rules of others are\n%s\nwant\n%s", when, after, before)
				}
				if got := r.members("foreign"); got != 1 {
					t.Errorf("%s the ipset of others has %d members, want 1", when, got)
				}
			}
			mine.sync(dataplane.Delta{Full: true, Put: append(mine.web(lb.TCP, "backend1"), mine.web(lb.UDP, "backend2")...)})
			check("after a Sync", others(r.saved(backend)))
			mine.answered("beside others' rules", lab.Outside, lab.TCP, node4)
			mine.sync(dataplane.Delta{Full: true, Put: mine.web(lb.TCP, "backend3")})
			check("after a change", others(r.saved(backend)))
			mine.stop()
			mine.cleanup()
			check("after a cleanup", r.saved(backend))
		})
	}
}

// foreign makes rules in every chain that lbproxy leads packets from, and in others, and
// removes them with the test.
func (r *rig) foreign(backend string) {
	r.t.Helper()
	r.node(func() error {
		return netlink.IpsetCreate("foreign", "hash:ip", netlink.IpsetCreateOptions{Family: unix.AF_INET, Replace: true})
	})
	r.node(func() error {
		return netlink.IpsetAdd("foreign", &netlink.IPSetEntry{IP: netip.MustParseAddr("192.0.2.1").AsSlice(), Replace: true})
	})
	var undo [][]string
	for program, nobody := range map[string]string{"iptables-" + backend: "203.0.113.77", "ip6tables-" + backend: "2001:db8::77"} {
		run := func(line string) { r.output(program, append([]string{"-w"}, strings.Fields(line)...)...) }
		for _, at := range []string{
			"nat PREROUTING", "nat OUTPUT", "nat POSTROUTING", "filter INPUT", "filter FORWARD", "filter OUTPUT", "mangle PREROUTING",
		} {
			t, chain, _ := strings.Cut(at, " ")
			run("-t " + t + " -N OTHER-" + chain)
			run("-t " + t + " -A OTHER-" + chain + " -d " + nobody + " -j RETURN" + map[bool]string{true: " -m comment --comment LBP-is-not-mine"}[chain == "INPUT"])
			run("-t " + t + " -A " + chain + " -m comment --comment other -j OTHER-" + chain)
		}
		for _, t := range []string{"nat", "filter", "mangle"} {
			undo = append(undo, []string{program, "-w", "-t", t, "-F"}, []string{program, "-w", "-t", t, "-X"})
		}
	}
	r.t.Cleanup(func() {
		for _, words := range undo {
			r.output(words[0], words[1:]...)
		}
	})
}

// others returns the lines of rules and chains that are not lbproxy's.
func others(saved string) string {
	var out strings.Builder
	for line := range strings.Lines(saved) {
		if !slices.ContainsFunc([]string{"-A ", "-j ", "-g ", ":"}, func(mark string) bool { return strings.Contains(line, mark+prefix) }) {
			out.WriteString(line)
		}
	}
	return out.String()
}

// members returns how many members an ipset has.
func (r *rig) members(set string) (n int) {
	r.t.Helper()
	r.node(func() error {
		k, err := openIPSets()
		if err != nil {
			return err
		}
		defer k.close()
		return k.list(set, func(member, uint32) { n++ })
	})
	return n
}
