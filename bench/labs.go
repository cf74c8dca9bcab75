// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/worker"
	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/ebpf"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

const otherServices = 1000 // in the tables beside those that are measured

// The cluster IPs that are measured.
var (
	vip4 = netip.MustParseAddr("10.96.255.1")
	vip6 = netip.MustParseAddr("fd00:10:96::ff01")
)

// place is a lab with workers in it.
type place struct {
	lab     *lab.Lab
	dp      *ebpf.Dataplane // nil without lbproxy
	workers map[string]hand
	close   []func() error
}

// newPlace makes a lab with a server and the given clients.
func newPlace(ctx context.Context, name string, balanced bool) (_ *place, err error) {
	p := &place{workers: map[string]hand{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if p.lab, err = lab.New(lab.Options{Name: name, Pods: []lab.PodSpec{
		{Name: "client1"}, {Name: "client2", Unhooked: true}, {Name: "client3", Unhooked: true}, {Name: "backend1"},
	}}); err != nil {
		return nil, err
	}
	p.close = append(p.close, p.lab.Close)
	if balanced {
		if err := p.open(ctx); err != nil {
			return nil, err
		}
	}
	for _, host := range []string{"client1", "client2", "client3", "backend1"} {
		w, err := worker.Start(ctx, p.lab.Host(host), workerKind)
		if err != nil {
			return nil, err
		}
		p.workers[host] = hand{w}
	}
	_, err = p.workers["backend1"].do(order{Verb: verbServe})
	return p, err
}

// Close ends everything of the place.
func (p *place) Close() error {
	for _, w := range p.workers {
		w.Stop()
	}
	var errs []error
	for i := range p.close {
		errs = append(errs, p.close[len(p.close)-1-i]())
	}
	return errors.Join(errs...)
}

// openDataplane opens a Dataplane on a lab's node and runs it until stop is called.
func openDataplane(ctx context.Context, l *lab.Lab) (dp *ebpf.Dataplane, stop func() error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	opened, done := make(chan error, 1), make(chan error, 1)
	go func() {
		done <- l.Host(lab.Node).Do(func() (err error) {
			dp, err = ebpf.Open(ebpf.Options{
				CgroupRoot: l.CgroupRoot(), BPFFS: l.BPFFS(), NodeName: lab.Node,
				Local: lb.LocalDetector{
					Mode: lb.LocalClusterCIDR, Ranges: []netip.Prefix{lab.ClusterPods4, lab.ClusterPods6},
				},
			})
			opened <- err
			if err != nil {
				return nil // it is in opened
			}
			return dp.Run(ctx)
		})
	}()
	if err := <-opened; err != nil {
		cancel()
		return nil, nil, err
	}
	return dp, func() error { cancel(); return errors.Join(<-done, dp.Close()) }, nil
}

// open puts lbproxy's dataplane on the node, with the Services to be measured and
// many others.
func (p *place) open(ctx context.Context) error {
	dp, stop, err := openDataplane(ctx, p.lab)
	if err != nil {
		return err
	}
	p.dp = dp
	p.close = append(p.close, stop)
	backend := p.lab.Host("backend1")
	d := dataplane.Delta{Full: true}
	for _, port := range []uint16{portBacklog, portEcho, portSink} {
		for _, f := range []struct{ vip, pod netip.Addr }{{vip4, backend.Addr4}, {vip6, backend.Addr6}} {
			for _, proto := range []lb.Proto{lb.TCP, lb.UDP} {
				svc, err := service(fmt.Sprintf("port-%d", port), proto, netip.AddrPortFrom(f.vip, port), f.pod)
				if err != nil {
					return err
				}
				d.Put = append(d.Put, svc)
			}
		}
	}
	for i := range otherServices {
		vip := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})
		svc, err := service(fmt.Sprintf("other-%d", i), lb.TCP, netip.AddrPortFrom(vip, 80), backend.Addr4)
		if err != nil {
			return err
		}
		d.Put = append(d.Put, svc)
	}
	if err := dp.Sync(ctx, d); err != nil {
		return err
	}
	// The dataplane attaches to the devices in its own time; it says so nowhere.
	return sleep(ctx, time.Second)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// service has one backend: pod, at the frontend's port.
func service(name string, proto lb.Proto, at netip.AddrPort, pod netip.Addr) (*dataplane.Service, error) {
	table, err := algo.Build("random", []algo.Member{{Weight: lb.DefaultWeight}})
	if err != nil {
		return nil, err
	}
	return &dataplane.Service{
		Name: lb.ServiceName{
			Object: lb.Object{Namespace: "bench", Name: name}, Proto: proto, Family: lb.FamilyOf(at.Addr()),
		},
		Frontends: []lb.Frontend{{
			FrontendKey: lb.FrontendKey{Addr: at, Proto: proto},
			Type:        lb.ClusterIP, Masquerade: lb.MasqueradeOffCluster,
		}},
		Cluster: dataplane.Pool{
			Backends: []lb.Backend{{Addr: netip.AddrPortFrom(pod, at.Port()), Weight: lb.DefaultWeight, Local: true}},
			Table:    table,
		},
	}, nil
}
