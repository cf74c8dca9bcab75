// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/observe"
	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	healthAddr  = "127.0.0.1:10256"
	metricsAddr = "127.0.0.1:10249"
	settle      = 4 * time.Second // until memory that a start or a scrape needed is given back
)

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
	if err := launch(ctx, l, program, dir, "cold", got); err != nil {
		return nil, err
	}
	return got, launch(ctx, l, program, dir, "restart", got)
}

// launch starts the program, waits until it is ready, notes what that took and
// kills it.
func launch(ctx context.Context, l *lab.Lab, program, dir, name string, got map[string]float64) (err error) {
	path, err := filepath.Abs(program)
	if err != nil {
		return fmt.Errorf("lbproxy: %w", err)
	}
	log, err := os.Create(filepath.Join(l.Dir(), name+".log"))
	if err != nil {
		return fmt.Errorf("lbproxy: %w", err)
	}
	defer log.Close()
	cmd := l.Host(lab.Node).Command(ctx, path, "run",
		"--manifests="+dir, "--node-name="+lab.Node, "--cgroup-root="+l.CgroupRoot(), "--bpffs="+l.BPFFS(),
		"--cluster-cidr="+lab.ClusterPods4.String()+","+lab.ClusterPods6.String(),
		"--healthz-bind-address="+healthAddr, "--metrics-bind-address="+metricsAddr)
	cmd.Stdout, cmd.Stderr = log, log
	begin := time.Now()
	if err := l.Host(lab.Node).Start(cmd); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Kill() // an error says that it has ended already
		_ = cmd.Wait()         // killed: there is no other way for it to end
		if err != nil {
			text, _ := os.ReadFile(log.Name())
			err = fmt.Errorf("lbproxy %s: %w\n%s", name, err, text)
		}
	}()
	first, err := await(ctx, l, begin)
	if err != nil {
		return err
	}
	got[name+": start to readyz answers"] = first.Seconds()
	got[name+": start to readyz ok"] = time.Since(begin).Seconds()
	return inspect(ctx, l, cmd.Process.Pid, name, got)
}

// await polls /readyz until it is OK. It returns when there was a first answer.
func await(ctx context.Context, l *lab.Lab, begin time.Time) (first time.Duration, err error) {
	for deadline := begin.Add(time.Minute); time.Now().Before(deadline); {
		status, _, err := observe.Get(l, healthAddr, "/readyz")
		if err == nil && first == 0 {
			first = time.Since(begin)
		}
		if err == nil && status == http.StatusOK {
			return first, nil
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return 0, errors.New("not ready after a minute")
}

// inspect notes what the program says of itself and the kernel of it.
func inspect(ctx context.Context, l *lab.Lab, pid int, name string, got map[string]float64) error {
	peak, err := observe.Memory(pid, "status", "VmHWM") // before the scrape, which needs more
	if err != nil {
		return err
	}
	_, text, err := observe.Get(l, metricsAddr, "/metrics")
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	metrics := observe.Metrics(text)
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
