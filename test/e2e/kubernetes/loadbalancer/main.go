// SPDX-License-Identifier: Apache-2.0

// Loadbalancer is the e2e cluster's cloud: Kubernetes' own service controller, with a
// provider (cloud.go) that gives Services of type LoadBalancer an address of a pool and
// routes it to the nodes, in the network namespace it runs in. Packets keep both
// their addresses, as with ipMode VIP: translating them is for the service proxy.
package main

import (
	"context"
	"flag"
	"net/netip"
	"os/signal"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/cloud-provider/controllers/service"
	"k8s.io/component-base/featuregate"
	metrics "k8s.io/component-base/metrics/prometheus/controllers"
	"k8s.io/klog/v2"
)

const (
	workers     = 5
	probePeriod = 500 * time.Millisecond // of health check node ports
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "of the API server, as an administrator")
	pool4 := flag.String("pool4", "172.32.0.0/24", "IPv4 addresses to give away")
	pool6 := flag.String("pool6", "fd00:32::/112", "IPv6 addresses to give away")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	pools := map[v1.IPFamily]netip.Prefix{
		v1.IPv4Protocol: netip.MustParsePrefix(*pool4),
		v1.IPv6Protocol: netip.MustParsePrefix(*pool6),
	}
	if err := run(ctx, *kubeconfig, pools); err != nil {
		klog.Fatal(err)
	}
}

func run(ctx context.Context, kubeconfig string, pools map[v1.IPFamily]netip.Prefix) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	c := newCloud(pools)
	shared := informers.NewSharedInformerFactory(client, 0)
	controller, err := service.New(c, client, shared.Core().V1().Services(), shared.Core().V1().Nodes(),
		"lab", featuregate.NewFeatureGate())
	if err != nil {
		return err
	}
	shared.Start(ctx.Done())
	go controller.Run(ctx, workers, metrics.NewControllerManagerMetrics("loadbalancer"))
	for ticker := time.NewTicker(probePeriod); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			c.probe()
		}
	}
}
