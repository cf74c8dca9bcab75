// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/endpoints"
)

// TestNodeReadsLoads: the agent that newNode makes asks the dataplane for connections,
// so a backend that has fewer than its peers stays in its slow start at the end of it.
func TestNodeReadsLoads(t *testing.T) {
	old, fresh := netip.MustParseAddrPort("10.244.1.9:8080"), netip.MustParseAddrPort("10.244.1.10:8080")
	for _, tc := range []struct {
		name string
		live map[netip.AddrPort]uint64
		want int // starters
	}{
		{"behind", map[netip.AddrPort]uint64{old: 10}, 1},
		{"level", map[netip.AddrPort]uint64{old: 10, fresh: 10}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				plane := &fakePlane{services: map[string]*dataplane.Service{}, live: tc.live}
				n := testNode(t, plane)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 2)
				go func() { done <- n.agent.Run(ctx) }()
				go func() { done <- n.monitor.Run(ctx) }()
				announce(n, "10.244.1.9")
				announce(n, "10.244.1.9", "10.244.1.10")
				<-time.After(3 * time.Second) // its slow start takes one
				synctest.Wait()
				plane.mu.Lock()
				defer plane.mu.Unlock()
				pool := plane.services["shop/web:http/TCP/IPv4"].Cluster
				if len(pool.Backends) != 2 || len(pool.Table.Starters) != tc.want {
					t.Errorf("%d backends, %d starters; want 2 and %d", len(pool.Backends), len(pool.Table.Starters), tc.want)
				}
				cancel()
				for range cap(done) {
					if err := <-done; err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

// testNode returns a node without servers whose Services have a slow start.
func testNode(t *testing.T, p plane) *node {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	cfg := config.Config{
		NodeName: "n1", Manifests: t.TempDir(), Algorithm: "least-connection", SlowStart: time.Second,
	}
	own := &ownNode{}
	src, err := newSource(cfg, own.set, log)
	if err != nil {
		t.Fatal(err)
	}
	n, err := (&app{newProber: newFakeProber}).newNode(newConfigured(cfg, config.New(), nil, log), own, src, p, choice{dataplane: config.EBPF}, newApproximations(log), log, &verbosity{})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// announce tells n of a Service at these addresses.
func announce(n *node, addresses ...string) {
	name, port, number := "http", corev1.ServicePort{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}, int32(8080)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &number, Protocol: &port.Protocol}},
	}
	for _, a := range addresses {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	n.src.store.UpsertService(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.1.1", ClusterIPs: []string{"10.96.1.1"},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Ports: []corev1.ServicePort{port},
		},
	})
	n.src.store.UpsertSlice(slice)
	n.src.store.MarkSynced(endpoints.Manifests)
	synctest.Wait()
}
