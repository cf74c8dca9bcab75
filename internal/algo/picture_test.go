// SPDX-License-Identifier: Apache-2.0

package algo_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/algo"
)

// backend is one of the backends of the pictures: a connection to it takes so
// many times longer than one to a backend of speed 1.
type backend struct {
	name   string
	weight int
	slow   int
}

var pictured = []backend{
	{"a", 100, 1}, {"b", 100, 1}, {"c", 100, 1}, {"d", 50, 1}, {"e", 200, 1}, {"f", 100, 5}, {"g", 0, 1},
}

// node is what one node knows.
type node struct {
	loads    []algo.Load
	measured []int // tick of the last sample
	given    []int // when each got a connection
	seq      uint32
}

// distribute opens a connection per tick on a random one of the nodes and returns
// how many each backend got. Connections to a fast backend take 100 to 300 ticks.
func distribute(t *testing.T, name string, nodes int) []int {
	const ticks, tickTime = 40000, 50 // tickTime: µs
	var weights []int
	for _, b := range pictured {
		weights = append(weights, b.weight)
	}
	table, err := algo.Build(name, weigh(weights...))
	if err != nil {
		t.Fatal(err)
	}
	all := make([]node, nodes)
	for i := range all {
		all[i] = node{loads: make([]algo.Load, len(pictured)), measured: make([]int, len(pictured)), given: make([]int, len(pictured)), seq: uint32(i)}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	got, ends := make([]int, len(pictured)), make([][]func(), ticks+5*300+1)
	for now := range ticks {
		for _, end := range ends[now] {
			end()
		}
		n := &all[rng.IntN(nodes)]
		in := algo.Input{Seq: n.seq, Hash: algo.HashSource(0, client(rng)), Load: func(i int) algo.Load {
			l := n.loads[i]
			l.Idle = uint32(now-max(n.measured[i], n.given[i])) * tickTime / 1000
			return l
		}}
		n.seq++
		for i := range in.Rand {
			in.Rand[i] = rng.Uint32()
		}
		i := algo.Pick(table, in)
		took := (100 + rng.IntN(201)) * pictured[i].slow
		got[i]++
		n.loads[i].Active++
		n.given[i] = now
		ends[now+took] = append(ends[now+took], func() {
			n.loads[i].Active--
			end := now + took
			n.loads[i].Latency = algo.NextLatency(n.loads[i].Latency, uint32(took*tickTime), uint32(end-n.measured[i])*tickTime/1000)
			n.measured[i] = end
		})
	}
	return got
}

// client returns one of 500 addresses.
func client(rng *rand.Rand) netip.Addr {
	n := rng.IntN(500)
	return netip.AddrFrom4([4]byte{10, 244, byte(n / 250), byte(n % 250)})
}

// picture draws the shares that each backend got with one node and with 50.
func picture(t *testing.T, name string) string {
	one, many := distribute(t, name, 1), distribute(t, name, 50)
	total, weights := 0, 0
	for i, b := range pictured {
		total += one[i]
		weights += b.weight
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%-8s%6s  %6s  %-32s%s\n", "backend", "weight", "says", "one node", "50 nodes")
	bar := func(n int) string {
		percent := 100 * float64(n) / float64(total)
		return fmt.Sprintf("%-24s%5.1f %%", strings.Repeat("#", int(percent/2+0.5)), percent)
	}
	for i, b := range pictured {
		label := b.name
		if b.slow > 1 {
			label = fmt.Sprintf("%s (1/%d)", b.name, b.slow)
		}
		fmt.Fprintf(&out, "%-8s%6d  %4.1f %%  %s  %s\n", label, b.weight, 100*float64(b.weight)/float64(weights), bar(one[i]), bar(many[i]))
	}
	return out.String()
}

// TestPictures: the pictures in the documentation are what the algorithms do.
func TestPictures(t *testing.T) {
	const file = "../../docs/ALGORITHMS.md"
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	doc := string(raw)
	for _, name := range algo.Names() {
		head, rest, ok := strings.Cut(doc, "<!-- picture: "+name+" -->\n```\n")
		old, tail, closed := strings.Cut(rest, "```\n")
		if !ok || !closed {
			t.Errorf("%s has no place for the picture of %s", file, name)
			continue
		}
		drawn := picture(t, name)
		if !*update && old != drawn {
			t.Errorf("the picture of %s: go test ./internal/algo -run Pictures -update\n got\n%s\nwant\n%s", name, old, drawn)
		}
		doc = head + "<!-- picture: " + name + " -->\n```\n" + drawn + "```\n" + tail
	}
	if *update {
		if err := os.WriteFile(file, []byte(doc), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
