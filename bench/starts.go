// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/launch"
	"github.com/lbproxy/lbproxy/bench/internal/observe"
	"github.com/lbproxy/lbproxy/internal/lab"
)

// settle is the time until memory that a start or a scrape needed is given back.
const settle = 4 * time.Second

// starts measures the program itself: how long a start with many Services takes
// and how much memory it has afterwards.
func starts(ctx context.Context, program string, sz size) ([]row, error) {
	group := fmt.Sprintf("lbproxy run --manifests, %d Services x %d", sz.services, endpointsEach)
	all := map[string][]float64{}
	for range sz.starts {
		got, err := startOnce(ctx, program, sz.services)
		if err != nil {
			return nil, err
		}
		for k, v := range got {
			all[k] = append(all[k], v)
		}
	}
	limits := map[string]*limit{
		"cold: first Sync": atMost(2, "<= 2 s"),
		"memory: VmRSS":    atMost(150, "<= 150 MB"),
	}
	var rows []row
	for _, name := range slices.Sorted(maps.Keys(all)) {
		unit := "s"
		if strings.HasPrefix(name, "memory") {
			unit = "MB"
		}
		rows = append(rows, newRow(group, name, unit, asValue, all[name], nil, limits[name]))
	}
	return rows, nil
}

// startOnce starts the program in a new lab, and again over what it left.
func startOnce(ctx context.Context, program string, services int) (_ map[string]float64, err error) {
	l, err := lab.New(lab.Options{Name: "start", Pods: []lab.PodSpec{}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	dir := filepath.Join(l.Dir(), "manifests")
	if err := writeManifests(dir, services); err != nil {
		return nil, err
	}
	got := map[string]float64{}
	if err := timed(ctx, l, program, dir, "cold", got); err != nil {
		return nil, err
	}
	return got, timed(ctx, l, program, dir, "restart", got)
}

// timed starts the program, waits until it is ready, notes what that took and
// kills it.
func timed(ctx context.Context, l *lab.Lab, program, dir, name string, got map[string]float64) (err error) {
	a, err := launch.Start(ctx, l, lab.Node, program, dir)
	if err != nil {
		return err
	}
	defer func() {
		a.Kill()
		err = a.Explain(err)
	}()
	first, err := a.Await(ctx)
	if err != nil {
		return err
	}
	got[name+": start to readyz answers"] = first.Seconds()
	got[name+": start to readyz ok"] = time.Since(a.Began).Seconds()
	return inspect(ctx, a, name, got)
}

// inspect notes what the program says of itself and the kernel of it.
func inspect(ctx context.Context, a *launch.Agent, name string, got map[string]float64) error {
	pid := a.PID()
	peak, err := observe.Memory(pid, "status", "VmHWM") // before the scrape, which needs more
	if err != nil {
		return err
	}
	metrics, err := a.Metrics()
	if err != nil {
		return err
	}
	got[name+": first Sync"] = metrics["lbproxy_sync_duration_seconds_sum"]
	got[name+": processor time"] = metrics["process_cpu_seconds_total"]
	if name != "cold" {
		return nil
	}
	got["memory: peak of the start (VmHWM)"] = peak
	if got["memory: peak of a scrape (VmHWM)"], err = observe.Memory(pid, "status", "VmHWM"); err != nil {
		return err
	}
	if err := sleep(ctx, settle); err != nil {
		return err
	}
	got["memory: Go heap after the start"] = metrics["go_memstats_heap_alloc_bytes"] / 1e6
	for _, field := range []string{"VmRSS", "RssAnon", "RssFile", "RssShmem"} {
		if got["memory: "+field], err = observe.Memory(pid, "status", field); err != nil {
			return err
		}
	}
	for _, field := range []string{"Pss", "Pss_Anon", "Pss_File"} {
		if got["memory: "+field], err = observe.Memory(pid, "smaps_rollup", field); err != nil {
			return err
		}
	}
	got["memory: BPF maps (memlock)"], err = observe.MapMemory(pid)
	return err
}
