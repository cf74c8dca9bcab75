// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/lbproxy/lbproxy/internal/agent"
	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/endpoints"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// listTimeout is for everything to be listed once.
const listTimeout = time.Minute

// wanted is what an agent would make the kernel do, as long as every backend is healthy.
type wanted struct {
	services []*dataplane.Service
	node     lb.Node
}

// desired reads the source of Services once. Nobody is told about what is wrong with them:
// that is the agent's part.
func desired(ctx context.Context, cfg config.Config) (w wanted, err error) {
	if cfg.NodeName == "" {
		if cfg.NodeName, err = hostName(); err != nil {
			return w, err
		}
	}
	if err := checkSource(cfg); err != nil {
		return w, err
	}
	store, run, err := quietSource(cfg)
	if err != nil {
		return w, err
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	changes, err := firstChanges(ctx, store, ended)
	cancel()
	if err != nil {
		return w, fmt.Errorf("list Services from %s: %w", sourceName(cfg), err)
	}
	w.node = store.Node()
	for _, c := range changes {
		for _, svc := range c.Services {
			compiled, err := agent.Compile(svc, agent.Defaults{Algorithm: cfg.Algorithm, SlowStart: cfg.SlowStart}, nil)
			if err != nil {
				return w, err
			}
			w.services = append(w.services, compiled)
		}
	}
	return w, nil
}

// firstChanges waits for everything.
func firstChanges(ctx context.Context, store *endpoints.Store, ended <-chan error) ([]lb.Change, error) {
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case err := <-ended:
			if err == nil {
				err = errors.New("it ended")
			}
			return nil, err
		case <-store.Dirty():
			if changes, full := store.Take(); full {
				return changes, nil
			}
		}
	}
}

// quietSource is a source that reports nothing.
func quietSource(cfg config.Config) (*endpoints.Store, func(context.Context) error, error) {
	log := slog.New(slog.DiscardHandler)
	opts := endpointOptions(cfg)
	if cfg.Manifests != "" {
		opts.Sources = []endpoints.Source{endpoints.Manifests}
		store := endpoints.New(opts, log, nil)
		return store, func(ctx context.Context) error { return endpoints.RunManifests(ctx, cfg.Manifests, store, log) }, nil
	}
	client, meta, err := newClients(cfg, opts)
	if err != nil {
		return nil, nil, err
	}
	store := endpoints.New(opts, log, nil)
	return store, func(ctx context.Context) error { return endpoints.RunKubernetes(ctx, client, meta, store) }, nil
}
