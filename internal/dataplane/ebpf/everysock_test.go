// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"errors"
	"io"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// TestSocketsByFile is what a kernel in lockdown runs, on whatever kernel: the programs that
// find sockets by open files do what their twins do.
func TestSocketsByFile(t *testing.T) {
	was := socketsByFile
	socketsByFile = func() bool { return true }
	defer func() { socketsByFile = was }()
	for name, test := range map[string]func(*testing.T){
		"TestStaleUDP":              TestStaleUDP,
		"TestStaleTCP":              TestStaleTCP,
		"TestStaleFrontends":        TestStaleFrontends,
		"TestEarlyUDP":              TestEarlyUDP,
		"TestEndsOfSockets":         TestEndsOfSockets,
		"TestRecountFindsMiscounts": TestRecountFindsMiscounts,
	} {
		t.Run(name, test)
	}
}

// TestOneSocketCountsOnce walks twice in one round, as where two processes have a socket: it
// is counted once, and again in the next round.
func TestOneSocketCountsOnce(t *testing.T) {
	was := socketsByFile
	socketsByFile = func() bool { return true }
	defer func() { socketsByFile = was }()
	r := newRig(t, nil)
	r.sync(r.endsWorld("round-robin"))
	r.open("client1", lab.TCP, endsVIP)
	for range 2 {
		r.recountIsExact("one connection")
		if err := r.dp.recountSockets(); err != nil {
			t.Fatal(err)
		}
		total := uint64(0)
		for _, id := range r.dp.backendsInUse() {
			total += r.dp.maps.recounts[id]
			if !r.dp.killer.isBackend(r.dp.maps.addrPort(id)) {
				t.Errorf("%s is no backend to the killer", r.dp.maps.addrPort(id))
			}
		}
		if total != 1 {
			t.Errorf("%d connections are counted after two walks, want 1", total)
		}
	}
	if vip := netip.MustParseAddrPort(endsVIP); r.dp.killer.isBackend(vip) {
		t.Errorf("%s is a backend to the killer", vip)
	}
}

// pauses is a reader that says EAGAIN before each byte.
type pauses struct {
	rest  string
	again bool
}

func (p *pauses) Close() error { return nil }

func (p *pauses) Read(b []byte) (int, error) {
	if p.again = !p.again; p.again {
		return 0, unix.EAGAIN
	}
	if p.rest == "" {
		return 0, io.EOF
	}
	n := copy(b, p.rest[:1])
	p.rest = p.rest[1:]
	return n, nil
}

// TestUnhurried: the kernel's pauses are not an end.
func TestUnhurried(t *testing.T) {
	if got, err := io.ReadAll(unhurried{&pauses{rest: "all"}}); string(got) != "all" || err != nil {
		t.Errorf("read %q, %v; want all", got, err)
	}
	closed, _ := io.Pipe()
	closed.Close()
	if _, err := io.ReadAll(unhurried{closed}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("read of what is closed: %v, want %v", err, io.ErrClosedPipe)
	}
}

// TestNextRound: no round has the number that sockets have which were never counted, nor
// that of the one before.
func TestNextRound(t *testing.T) {
	for round, n := uint64(0), 0; n < 600; n++ {
		next := nextRound(round)
		if next&0xff == 0 || next&0xff == round&0xff {
			t.Fatalf("round %d follows %d", next, round)
		}
		round = next
	}
}
