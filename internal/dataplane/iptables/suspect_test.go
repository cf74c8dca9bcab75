// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestWitness: connections that nobody answers for a second are told of, once a backend
// and time, and others are not.
func TestWitness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		name := lb.ServiceName{Object: lb.Object{Namespace: "ns", Name: "a"}, Proto: lb.TCP, Family: lb.IPv4}
		web, node := ap("10.96.0.1:80"), ap("0.0.0.0:30080")
		one, two := ap("10.244.1.1:80"), ap("10.244.1.2:80")
		list := []suspecting{{suspect: 2 * time.Second, loaded: loaded{
			name: name, backends: []lb.Backend{{Addr: one}, {Addr: two}},
			frontends: []lb.FrontendKey{{Addr: web, Proto: lb.TCP}, {Addr: node, Proto: lb.TCP}},
		}}}
		var table []flow
		w := newWitness(func() bool { return len(list) > 0 }, func() []suspecting { return list },
			func(f lb.Family, _ lb.Proto, each func(flow)) error {
				for _, fl := range table {
					if lb.FamilyOf(fl.frontend.Addr()) == f {
						each(fl)
					}
				}
				return nil
			})
		unanswered := func(client string, to, backend string) flow {
			return flow{proto: lb.TCP, state: tcpSynSent, client: ap(client), frontend: ap(to), backend: ap(backend), id: 1}
		}
		step := func(want ...lb.Symptom) {
			t.Helper()
			<-time.After(witnessPeriod)
			w.tells(t, want...)
		}
		first := lb.Symptom{Service: name, Backend: one, Kind: lb.Unanswered}

		answered := unanswered("10.0.0.1:1003", "10.96.0.1:80", "10.244.1.2:80")
		answered.replied = true
		table = []flow{
			unanswered("10.0.0.1:1001", "10.96.0.1:80", "10.244.1.1:80"), answered,
			unanswered("10.0.0.1:1004", "10.96.0.9:80", "10.244.1.2:80"), // somebody else's
		}
		step()
		step(first)
		step() // not again before its time
		w.calm(suspectKey{name, one}, 10*time.Second)
		for range 5 {
			step()
		}
		w.calm(suspectKey{name, one}, 0)
		step(first)
		table = []flow{unanswered("10.0.0.1:1005", "172.30.0.1:30080", "10.244.1.2:80")}
		step()
		step(lb.Symptom{Service: name, Backend: two, Kind: lb.Unanswered})
		list = nil
		step()
		if w.waiting != nil {
			t.Error("connections are remembered though nobody suspects")
		}
	})
}

// TestAnswered: what is new at a reading and answered was opened, what waits at two has
// failed; what was there before anybody looked is neither, nor what was opened long ago.
func TestAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const established = 3 // TCP_CONNTRACK_ESTABLISHED
		looks, broken := true, error(nil)
		var table []flow
		w := newWitness(func() bool { return looks }, func() []suspecting { return nil },
			func(f lb.Family, _ lb.Proto, each func(flow)) error {
				for _, fl := range table {
					if f == lb.IPv4 {
						each(fl)
					}
				}
				return broken
			})
		d := &Dataplane{witness: w}
		id := uint32(0)
		open := func(backend string, replied bool) {
			id++
			fl := flow{proto: lb.TCP, state: tcpSynSent, client: ap("10.0.0.1:1000"), frontend: ap("10.96.0.1:80"), backend: ap(backend), id: id}
			if fl.replied = replied; replied {
				fl.state = established
			}
			table = append(table, fl)
		}
		step := func(want string) {
			t.Helper()
			<-time.After(witnessPeriod)
			w.tells(t)
			o, ok := d.Answered(ap("10.244.1.1:80"))
			if got := fmt.Sprint(o.Answered, o.Failed, ok); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			if looks && !o.At.Equal(time.Now()) {
				t.Errorf("read at %v, at %v", o.At, time.Now())
			}
		}
		open("10.244.1.1:80", true)
		step("0 0 true")
		open("10.244.1.1:80", true)
		open("10.244.1.2:80", true)
		step("1 0 true")
		step("1 0 true")
		open("10.244.1.1:80", false)
		step("1 0 true")
		step("1 1 true")
		table = table[:2]
		<-time.After(remembered)
		step("0 0 true")
		looks = false
		step("0 0 true")
		looks, broken = true, errors.New("broken")
		if err := w.tick(time.Now()); !errors.Is(err, broken) {
			t.Errorf("got %v, want %v", err, broken)
		}
		if _, ok := d.Answered(ap("10.244.1.1:80")); ok {
			t.Error("connections that cannot be read are known")
		}
	})
}

// tells reads, and fails unless exactly want is told of.
func (w *witness) tells(t *testing.T, want ...lb.Symptom) {
	t.Helper()
	if err := w.tick(time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, s := range want {
		select {
		case got := <-w.symptoms:
			if got != s {
				t.Errorf("symptom %+v, want %+v", got, s)
			}
		default:
			t.Errorf("no symptom, want %+v", s)
		}
	}
	select {
	case got := <-w.symptoms:
		t.Errorf("symptom %+v, want no other", got)
	default:
	}
}

// TestBusyWitness: a reading that took long because the machine is busy does not put the
// next one off; one that cost much does.
func TestBusyWitness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		readings := 0
		w := newWitness(func() bool { return true }, func() []suspecting { return nil }, func(f lb.Family, _ lb.Proto, _ func(flow)) error {
			if f == lb.IPv4 {
				readings++
			}
			<-time.After(witnessPeriod)
			return nil
		})
		spent, costs := time.Duration(0), time.Duration(0)
		w.spent = func() time.Duration { spent += costs; return spent }
		pass := func(what string, want int) {
			t.Helper()
			readings = 0
			for range 10 {
				<-time.After(witnessPeriod)
				w.tells(t)
			}
			if readings != want {
				t.Errorf("%s: %d readings, want %d", what, readings, want)
			}
		}
		pass("slow", 10)
		costs = witnessPeriod
		pass("costly", 2)
	})
}
