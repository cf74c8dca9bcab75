// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// inNode is a Dataplane in the node of a lab: calls are made in its network namespace.
// It fails as told.
type inNode struct {
	*Dataplane
	host *lab.Host

	mu     sync.Mutex
	faults map[lb.ServiceName]error
}

// TestMain is for all tests of the package that need root.
func TestMain(m *testing.M) {
	lab.Main()
	os.Exit(m.Run())
}

func (d *inNode) Sync(ctx context.Context, delta dataplane.Delta) error {
	return d.host.Do(func() error { return d.Dataplane.Sync(ctx, delta) })
}

func (d *inNode) Audit(ctx context.Context, svcs []*dataplane.Service) (found []string, err error) {
	err = d.host.Do(func() (err error) {
		found, err = d.Dataplane.Audit(ctx, svcs)
		return err
	})
	return found, err
}

// FailService implements dptest.Faulter.
func (d *inNode) FailService(name lb.ServiceName, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults[name] = err
}

func (d *inNode) failing(name lb.ServiceName) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.faults[name]
}

// rig is a Dataplane in the node of a lab with servers.
type rig struct {
	*labtest.Net
	t    *testing.T
	opts Options
	dp   *inNode
	stop func() // the agent's part; the kernel's goes on

	locks int // files of locks that were used
}

// newRig starts a Dataplane of which nothing stays behind t, and which knows of no
// connection from before.
func newRig(t *testing.T, n *labtest.Net, backend string, edit func(*Options)) *rig {
	t.Helper()
	r := &rig{Net: n, t: t, opts: Options{
		Backend: backend, MasqueradeBit: 14, LocalhostNodePorts: true,
		Local:     lb.LocalDetector{Mode: lb.LocalClusterCIDR, Ranges: []netip.Prefix{lab.ClusterPods4, lab.ClusterPods6}},
		NodeAddrs: n.Lab.Host(lab.Node).Addrs(),
		Period:    time.Hour, // see refresh
		Log:       slog.New(slog.NewTextHandler(t.Output(), nil)),
	}}
	if edit != nil {
		edit(&r.opts)
	}
	r.node(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
	t.Cleanup(r.cleanup)
	r.start()
	return r
}

// start opens the Dataplane and runs it.
func (r *rig) start() {
	r.t.Helper()
	host := r.Lab.Host(lab.Node)
	r.ownLock()
	d := &inNode{host: host, faults: map[lb.ServiceName]error{}}
	d.Dataplane, r.stop = labtest.Start(r.t, host, func() (*Dataplane, error) {
		dp, err := Open(r.opts)
		if err == nil {
			dp.fail = d.failing
		}
		return dp, err
	})
	r.dp = d
}

// cleanup removes what the Dataplane wrote.
func (r *rig) cleanup() {
	r.t.Helper()
	r.ownLock()
	r.node(func() error { _, err := Cleanup(r.opts); return err })
}

// ownLock makes the next one take a lock of its own: a program that another test is just
// starting has the old one open for a moment.
func (r *rig) ownLock() {
	r.locks++
	r.opts.LockFile = filepath.Join(r.Lab.Dir(), fmt.Sprintf("lock%d", r.locks))
}

// node runs f in the network namespace of the node.
func (r *rig) node(f func() error) {
	r.t.Helper()
	if err := r.Lab.Host(lab.Node).Do(f); err != nil {
		r.t.Error(err)
	}
}

// output runs a program in the network namespace of the node.
func (r *rig) output(name string, args ...string) string {
	r.t.Helper()
	host, out := r.Lab.Host(lab.Node), new(bytes.Buffer)
	cmd := host.Command(context.Background(), name, args...) // also when the test ends
	cmd.Stdout, cmd.Stderr = out, out
	err := host.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		r.t.Fatalf("%s: %v: %s", cmd, err, out)
	}
	return out.String()
}

// file writes a file, which ends with the lab, and returns its path.
func (r *rig) file(name, text string) string {
	r.t.Helper()
	path := filepath.Join(r.Lab.Dir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// refresh makes the Dataplane look at the loads, twice: the second time no connection is
// new, so that it expects few.
func (r *rig) refresh() {
	r.t.Helper()
	r.node(func() error {
		for range 2 {
			r.dp.feedback.next = time.Time{} // however long the last look took
			r.dp.feedback.tick(r.t.Context())
		}
		return nil
	})
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
		h := r.Lab.Host(n)
		a := h.Addr4
		if f == lb.IPv6 {
			a = h.Addr6
		}
		bs = append(bs, lb.Backend{Addr: netip.AddrPortFrom(a, labtest.BackendPort), Weight: lb.DefaultWeight, Local: n != "remote1"})
	}
	slices.SortFunc(bs, lb.Backend.Compare)
	return bs
}

// svc describes a Service with one pool of backends, at addresses "ADDR:PORT": cluster
// IPs, and node ports where the address is unspecified.
func (r *rig) svc(name string, proto lb.Proto, algorithm string, bs []lb.Backend, at ...string) *dataplane.Service {
	r.t.Helper()
	svc := &dataplane.Service{Balance: lb.Balance{Algorithm: algorithm}}
	svc.Name = lb.ServiceName{Object: lb.Object{Namespace: "default", Name: name}, Proto: proto}
	for _, a := range at {
		fe := lb.Frontend{
			FrontendKey: lb.FrontendKey{Addr: netip.MustParseAddrPort(a), Proto: proto},
			Type:        lb.ClusterIP, Masquerade: lb.MasqueradeOffCluster,
		}
		if fe.Addr.Addr().IsUnspecified() {
			fe.Type, fe.Masquerade = lb.NodePort, lb.MasqueradeAlways
		}
		svc.Name.Family = lb.FamilyOf(fe.Addr.Addr())
		svc.Frontends = append(svc.Frontends, fe)
	}
	slices.SortFunc(svc.Frontends, lb.Frontend.Compare)
	svc.Cluster = dataplane.Pool{Backends: bs}
	var ms []algo.Member
	for i, b := range bs {
		ms = append(ms, algo.Member{ID: uint64(i) + 1, Weight: b.Weight})
	}
	var err error
	if svc.Cluster.Table, err = algo.Build(algorithm, ms); err != nil {
		r.t.Fatal(err)
	}
	return svc
}

// dial makes an exchange.
func (r *rig) dial(from, proto, to string) lab.Result {
	r.t.Helper()
	return r.Lab.Host(from).Dial(r.t.Context(), lab.Request{
		Proto: proto, To: netip.MustParseAddrPort(to), Connected: proto == lab.UDP, Timeout: labtest.Patience,
	})
}

// answered fails unless to answers.
func (r *rig) answered(what, from, proto, to string) {
	r.t.Helper()
	if res := r.dial(from, proto, to); res.Kind != lab.OK {
		r.t.Errorf("%s: %s from %s to %s: %s %s", what, proto, from, to, res.Kind, res.Err)
	}
}

// open holds a connection.
func (r *rig) open(from, proto, to string) *lab.Conn {
	r.t.Helper()
	c, res := r.Lab.Host(from).Open(r.t.Context(), lab.Request{Proto: proto, To: netip.MustParseAddrPort(to), Timeout: labtest.Patience})
	if res.Kind != lab.OK {
		r.t.Fatalf("%s from %s to %s: %s %s", proto, from, to, res.Kind, res.Err)
	}
	return c
}
