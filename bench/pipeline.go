// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/lbproxy/lbproxy/internal/agent"
	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/endpoints"
	"github.com/lbproxy/lbproxy/internal/lab"
)

// changePause is longer than the agent's pacer holds anything back for, on average.
const changePause = 12 * time.Millisecond

// pipeline measures the way from an object to the kernel in this process: the
// store, the agent and the eBPF dataplane, without an API server or files.
func pipeline(ctx context.Context, sz size) ([]row, error) {
	const group = "agent: endpoints.Store -> agent -> kernel"
	var rows []row
	var last []float64
	for _, services := range []int{sz.services / 10, sz.services} {
		var cold, p50, p99, inSync []float64
		for range sz.starts {
			got, err := pipelineOnce(ctx, services, sz.changes)
			if err != nil {
				return nil, err
			}
			cold = append(cold, got.cold.Seconds())
			inSync = append(inSync, float64(got.sync.Milliseconds()))
			slices.Sort(got.changes)
			p50, p99 = append(p50, quantile(got.changes, 0.5)/1e3), append(p99, quantile(got.changes, 0.99)/1e3)
		}
		name := fmt.Sprintf("%d Services x %d", services, endpointsEach)
		rows = append(rows,
			newRow(group, "cold, all sources listed to programmed: "+name, "s", asValue, cold, nil, atMost(2, "<= 2 s")),
			newRow(group, "of that in Dataplane.Sync: "+name, "ms", asValue, inSync, nil, nil),
			newRow(group, "endpoint change to kernel p50: "+name, "us", asValue, p50, nil, atMost(1000, "<= 1 ms")),
			newRow(group, "endpoint change to kernel p99: "+name, "us", asValue, p99, nil, nil))
		if last != nil {
			rows = append(rows, newRow(group, "p50 at this number against a tenth of it", "us", asRatio, p50, last,
				atMost(1.5, "same")))
		}
		last = p50
	}
	return rows, nil
}

// timing is what one run of the pipeline took.
type timing struct {
	cold    time.Duration
	sync    time.Duration // of cold, the first Sync of the dataplane
	changes []time.Duration
}

// timedPlane measures the longest Sync: that of everything.
type timedPlane struct {
	dataplane.Dataplane
	longest time.Duration
}

// Sync implements dataplane.Dataplane.
func (t *timedPlane) Sync(ctx context.Context, d dataplane.Delta) error {
	begin := time.Now()
	err := t.Dataplane.Sync(ctx, d)
	t.longest = max(t.longest, time.Since(begin))
	return err
}

func pipelineOnce(ctx context.Context, services, changes int) (_ timing, err error) {
	l, err := lab.New(lab.Options{Name: "agent", Pods: []lab.PodSpec{}})
	if err != nil {
		return timing{}, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	dp, stop, err := openDataplane(ctx, l)
	if err != nil {
		return timing{}, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	log := slog.New(slog.DiscardHandler)
	store := endpoints.New(endpoints.Options{
		NodeName: lab.Node, Sources: []endpoints.Source{endpoints.Manifests}, CheckAlgorithm: algo.Check,
	}, log, nil)
	for i := range services {
		store.UpsertService(clusterService(i))
		store.UpsertSlice(clusterSlice(i, endpointsEach))
	}
	plane := &timedPlane{Dataplane: dp}
	applied := make(chan struct{}, 1)
	a, err := agent.New(agent.Options{
		Source: store, Dataplane: plane, Log: log, Algorithm: "random",
		Observe: func(float64) { applied <- struct{}{} },
	})
	if err != nil {
		return timing{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	defer func() { cancel(); err = errors.Join(err, <-done) }()

	begin := time.Now()
	store.MarkSynced(endpoints.Manifests)
	for !a.Status().Synced {
		if err := sleep(ctx, time.Millisecond); err != nil {
			return timing{}, err
		}
	}
	t := timing{cold: time.Since(begin), sync: plane.longest}
	for n := range changes {
		if err := sleep(ctx, changePause); err != nil {
			return t, err
		}
		slice := clusterSlice(n%services, endpointsEach-1)
		begin := time.Now()
		store.UpsertSlice(slice)
		select {
		case <-applied:
			t.changes = append(t.changes, time.Since(begin))
		case <-time.After(10 * time.Second):
			return t, fmt.Errorf("change %d of a slice was never applied", n)
		}
	}
	return t, nil
}
