// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/endpoints"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// errNoSource says that nothing tells where Services come from.
var errNoSource = errors.New("no source of Services: this is not a pod, and none of --kubeconfig, --master and --manifests is given")

// source is where Services come from.
type source struct {
	store  *endpoints.Store
	events *endpoints.EventReporter // nil without an API server
	run    func(context.Context) error
}

// sourceName tells where Services come from, for people.
func sourceName(cfg config.Config) string {
	switch {
	case cfg.Manifests != "":
		return "manifests in " + cfg.Manifests
	case cfg.Kubeconfig != "":
		return "API server of " + cfg.Kubeconfig
	case cfg.Master != "":
		return "API server at " + cfg.Master
	}
	return "API server of this pod's cluster"
}

// checkSource tells whether the place exists. It does not connect.
func checkSource(cfg config.Config) error {
	if cfg.Manifests == "" {
		_, err := clientConfig(cfg)
		return err
	}
	info, err := os.Stat(cfg.Manifests)
	if err != nil {
		return fmt.Errorf("manifests: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("manifests: %s is not a directory", cfg.Manifests)
	}
	return nil
}

// newSource returns the source that cfg names. onNode is told what the own Node says,
// once the source runs.
func newSource(cfg config.Config, onNode func(lb.Node), log *slog.Logger) (*source, error) {
	if err := checkSource(cfg); err != nil {
		return nil, err
	}
	opts := endpointOptions(cfg)
	opts.OnNode = onNode
	if cfg.Manifests != "" {
		opts.Sources = []endpoints.Source{endpoints.Manifests}
		store := endpoints.New(opts, log, nil)
		return &source{store: store, run: func(ctx context.Context) error {
			return endpoints.RunManifests(ctx, cfg.Manifests, store, log)
		}}, nil
	}
	client, meta, err := newClients(cfg, opts)
	if err != nil {
		return nil, err
	}
	events := endpoints.NewEventReporter(client, cfg.NodeName, log)
	store := endpoints.New(opts, log, events)
	return &source{store: store, events: events, run: func(ctx context.Context) error {
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return endpoints.RunKubernetes(ctx, client, meta, store) })
		g.Go(func() error { return events.Run(ctx, store.UID) })
		return g.Wait()
	}}, nil
}

func endpointOptions(cfg config.Config) endpoints.Options {
	return endpoints.Options{
		NodeName:          cfg.NodeName,
		Sources:           endpoints.KubernetesSources,
		MasqueradeAll:     cfg.MasqueradeAll,
		DenyExternalIPs:   !cfg.AllowExternalIPs,
		CheckAlgorithm:    algo.Check,
		DefaultAlgorithm:  cfg.Algorithm,
		DefaultHealth:     cfg.Health,
		IgnoreNodeWeights: !cfg.NodeWeights,
		SCTP:              true, // for pods and from outside, see docs/COMPATIBILITY.md
	}
}

// newClients returns a client for whole objects and one for metadata.
func newClients(cfg config.Config, o endpoints.Options) (kubernetes.Interface, metadata.Interface, error) {
	rc, err := clientConfig(cfg)
	if err != nil {
		return nil, nil, err
	}
	rc.UserAgent = "lbproxy/" + version
	rc.ContentType = runtime.ContentTypeProtobuf
	rc.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	client, err := endpoints.NewClient(rc, o)
	if err != nil {
		return nil, nil, fmt.Errorf("API: %w", err)
	}
	meta, err := metadata.NewForConfig(rc)
	if err != nil {
		return nil, nil, fmt.Errorf("API: client for metadata: %w", err)
	}
	return client, meta, nil
}

// clientConfig reads how to reach the API server.
func clientConfig(cfg config.Config) (*rest.Config, error) {
	if cfg.Kubeconfig == "" {
		rc, err := rest.InClusterConfig()
		switch {
		case errors.Is(err, rest.ErrNotInCluster) && cfg.Master != "":
			return &rest.Config{Host: cfg.Master}, nil // which asks for no credentials
		case errors.Is(err, rest.ErrNotInCluster):
			return nil, errNoSource
		case err != nil:
			return nil, fmt.Errorf("in-cluster configuration: %w", err)
		}
		rc.Host = cmp.Or(cfg.Master, rc.Host)
		return rc, nil
	}
	if _, err := os.Stat(cfg.Kubeconfig); err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	rc, err := clientcmd.BuildConfigFromFlags(cfg.Master, cfg.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", cfg.Kubeconfig, err)
	}
	return rc, nil
}
