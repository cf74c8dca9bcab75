// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

func TestMain(m *testing.M) {
	lab.Main()
	clientMain()
	os.Exit(m.Run())
}

const (
	backendPort = labtest.BackendPort
	silence     = labtest.Silence
	patience    = labtest.Patience
)

// rig is a Dataplane in the node of a lab, with servers on every backend pod.
type rig struct {
	t    *testing.T
	lab  *lab.Lab
	dp   *Dataplane
	opts Options
	end  func()
}

func labOptions(t *testing.T, l *lab.Lab) Options {
	return Options{
		CgroupRoot: l.CgroupRoot(),
		BPFFS:      l.BPFFS(),
		NodeName:   "node",
		Local:      podRanges(),
		Log:        slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

func newRig(t *testing.T, edit func(*Options)) *rig {
	t.Helper()
	l := labtest.NewLab(t, lab.Options{})
	r := &rig{t: t, lab: l, opts: labOptions(t, l)}
	if edit != nil {
		edit(&r.opts)
	}
	for _, h := range []string{"backend1", "backend2", "backend3", "remote1", lab.Node} {
		labtest.Serve(t, l.Host(h), backendPort)
	}
	r.start()
	return r
}

// start opens the Dataplane and runs it.
func (r *rig) start() {
	r.t.Helper()
	r.dp, r.end = labtest.Start(r.t, r.lab.Host(lab.Node), func() (*Dataplane, error) { return Open(r.opts) })
}

// stop ends the agent's part; the kernel's goes on.
func (r *rig) stop() { r.end() }

// eventually waits for a condition that another goroutine brings about.
func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	r.within(10*time.Second, what, ok)
}

func (r *rig) within(d time.Duration, what string, ok func() bool) {
	r.t.Helper()
	labtest.Within(r.t, d, what, ok)
}

func (r *rig) sync(d dataplane.Delta) {
	r.t.Helper()
	if err := r.dp.Sync(r.t.Context(), d); err != nil {
		r.t.Fatal(err)
	}
}

// pods returns backends at the given hosts of the lab.
func (r *rig) pods(f lb.Family, names ...string) []lb.Backend {
	var bs []lb.Backend
	for _, n := range names {
		h := r.lab.Host(n)
		a := h.Addr4
		if f == lb.IPv6 {
			a = h.Addr6
		}
		bs = append(bs, lb.Backend{
			Addr:   netip.AddrPortFrom(a, backendPort),
			Weight: lb.DefaultWeight,
			Local:  n != "remote1",
		})
	}
	slices.SortFunc(bs, lb.Backend.Compare)
	return bs
}

func frontend(t lb.FrontendType, proto lb.Proto, at string, m lb.Masquerade) lb.Frontend {
	return lb.Frontend{
		FrontendKey: lb.FrontendKey{Addr: netip.MustParseAddrPort(at), Proto: proto},
		Type:        t,
		Masquerade:  m,
	}
}

func pool(t *testing.T, algorithm string, empty lb.Verdict, bs []lb.Backend) dataplane.Pool {
	t.Helper()
	var ms []algo.Member
	for i, b := range bs {
		ms = append(ms, algo.Member{ID: uint64(i), Weight: b.Weight})
	}
	table, err := algo.Build(algorithm, ms)
	if err != nil {
		t.Fatal(err)
	}
	return dataplane.Pool{Backends: bs, Table: table, Empty: empty}
}

// svc describes a Service with one pool of backends.
func (r *rig) svc(name string, f lb.Family, proto lb.Proto, algorithm string, bs []lb.Backend, fes ...lb.Frontend) *dataplane.Service {
	return &dataplane.Service{
		Name:      lb.ServiceName{Object: lb.Object{Namespace: "default", Name: name}, Proto: proto, Family: f},
		Frontends: fes,
		Cluster:   pool(r.t, algorithm, lb.Reject, bs),
	}
}

// dial connects n times and returns how often each host answered.
func (r *rig) dial(from string, req lab.Request, n int) (map[string]int, []lab.Result) {
	r.t.Helper()
	rs, err := r.lab.Host(from).DialMany(r.t.Context(), req, n)
	if err != nil {
		r.t.Fatal(err)
	}
	got := map[string]int{}
	for _, res := range rs {
		if res.Kind == lab.OK {
			got[res.Backend]++
		} else {
			got[string(res.Kind)]++
		}
	}
	return got, rs
}

// podRanges tells pods of a lab by their addresses.
func podRanges() lb.LocalDetector {
	return lb.LocalDetector{Mode: lb.LocalClusterCIDR, Ranges: []netip.Prefix{lab.ClusterPods4, lab.ClusterPods6}}
}
