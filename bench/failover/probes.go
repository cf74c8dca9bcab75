// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/launch"
	"github.com/lbproxy/lbproxy/bench/internal/observe"
	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	endpointsEach = 100              // of a Service whose endpoints are probed
	webShare      = 10               // one of so many Services is probed by HTTP
	burnLimit     = 15 * time.Minute // for all probes while the processors are busy
	target        = "target"
)

// targets are the addresses that are probed, which one pod has.
var targets = netip.MustParsePrefix("10.245.0.0/16")

// probed is what probing many endpoints each second came to.
type probed struct {
	Targets int `json:"targets"`

	// While nothing else is to be done.
	Rate   float64 `json:"rate"`   // probes a second
	CPU    float64 `json:"cpu"`    // processors that the agent was busy on
	Kernel float64 `json:"kernel"` // of that, in the kernel
	Limit  float64 `json:"limit"`  // a goal
	Null   float64 `json:"null"`   // processors that the null program would be busy on with as many connections by TCP as there are targets

	// While all processors are busy.
	TCP     float64       `json:"tcp"` // probes
	HTTP    float64       `json:"http"`
	Took    time.Duration `json:"took"`
	Burners int           `json:"burners"` // processes that do nothing but that
	Ejected float64       `json:"ejected"` // backends, at any time
	Failed  float64       `json:"failed"`  // probes
	Cannot  float64       `json:"cannot"`  // that said nothing, as the node was too busy
	Dropped int           `json:"dropped"` // packets, by any processor whose queue was full
}

// all is what the agent would be busy on if it got through with every probe: where others
// are busy, too, it is slower.
func (p *probed) all() float64 { return p.CPU / p.Rate * float64(p.Targets) }

// manyProbes measures the processor time that probes of many endpoints cost, and counts
// those that fail although nothing is wrong with the backends.
func (b *bench) manyProbes(ctx context.Context) (err error) {
	l, err := lab.New(lab.Options{Name: "probes", Pods: []lab.PodSpec{{Name: target}}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := l.Host(target).AddRange(targets); err != nil {
		return err
	}
	stop, err := startWorker(ctx, l.Host(target), workServe, nil)
	if err != nil {
		return err
	}
	defer stop()
	dir := filepath.Join(l.Dir(), "manifests")
	if err := writeTargets(dir, b.targets); err != nil {
		return err
	}
	a, err := launch.Start(ctx, l, lab.Node, b.program, dir, arms[0].flags...)
	if err != nil {
		return err
	}
	defer a.Kill()
	if _, err := a.Await(ctx); err != nil {
		return a.Explain(err)
	}
	p := &probed{Targets: b.targets, Limit: 0.5}
	b.report.Probed = p
	if err := p.idle(ctx, b, a); err != nil {
		return a.Explain(err)
	}
	b.log("%d endpoints: %.0f probes a second, %.2f processors, %.2f of them in the kernel", p.Targets, p.Rate, p.CPU, p.Kernel)
	if err := p.beside(ctx, b, l); err != nil {
		return err
	}
	b.log("the null program: %.2f processors", p.Null)
	if err := p.busy(ctx, b, l, a); err != nil {
		return a.Explain(err)
	}
	for _, line := range ejected(a.Log()) {
		b.log("%s", line)
	}
	b.log("all processors busy: %.0f probes by TCP and %.0f by HTTP in %s; %.0f failed, %.0f could not be made, %.0f backends ejected; %d packets dropped",
		p.TCP, p.HTTP, p.Took.Round(time.Second), p.Failed, p.Cannot, p.Ejected, p.Dropped)
	return nil
}

// idle measures the agent's processor time.
func (p *probed) idle(ctx context.Context, b *bench, a *launch.Agent) error {
	if err := sleep(ctx, 3*time.Second); err != nil { // until all have been probed
		return err
	}
	before, start, err := count(a)
	if err != nil {
		return err
	}
	user, kernel, err := observe.ProcessCPU(a.PID())
	if err != nil {
		return err
	}
	if err := sleep(ctx, b.cpu); err != nil {
		return err
	}
	user2, kernel2, err := observe.ProcessCPU(a.PID())
	if err != nil {
		return err
	}
	after, end, err := count(a)
	if err != nil {
		return err
	}
	took := end.Sub(start).Seconds()
	p.CPU, p.Kernel = (user2+kernel2-user-kernel)/took, (kernel2-kernel)/took
	p.Rate = (after.tcp + after.http - before.tcp - before.http) / took
	if p.Rate == 0 {
		return errors.New("no backend was probed")
	}
	return nil
}

// beside measures the null program's processor time, while the agent goes on.
func (p *probed) beside(ctx context.Context, b *bench, l *lab.Lab) error {
	var said bytes.Buffer
	stop, err := startWorker(ctx, l.Host(lab.Node), workNull, &said, fmt.Sprintf("%s=%d", envTargets, b.targets))
	if err != nil {
		return err
	}
	err = sleep(ctx, b.cpu/2)
	stop()
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(said.String()), "\n")
	var n, us float64
	if _, err := fmt.Sscan(lines[len(lines)-1], &n, &us); err != nil || n == 0 {
		return fmt.Errorf("the null program said %q: %w", said.String(), err)
	}
	p.Null = us / 1e6 / n * float64(b.targets)
	return nil
}

// busy counts probes until there were enough.
func (p *probed) busy(ctx context.Context, b *bench, l *lab.Lab, a *launch.Agent) error {
	p.Burners = runtime.NumCPU()
	for range p.Burners {
		stop, err := startWorker(ctx, l.Host(target), workBurn, nil)
		if err != nil {
			return err
		}
		defer stop()
	}
	first, start, err := count(a)
	if err != nil {
		return err
	}
	dropped, err := observe.Dropped()
	if err != nil {
		return err
	}
	for {
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
		now, at, err := count(a)
		if err != nil {
			return err
		}
		p.TCP, p.HTTP, p.Took = now.tcp-first.tcp, now.http-first.http, at.Sub(start)
		p.Failed, p.Cannot, p.Ejected = now.failed-first.failed, now.cannot-first.cannot, now.ejected-first.ejected
		if p.TCP+p.HTTP >= float64(b.probes) || p.Took > burnLimit {
			lost, err := observe.Dropped()
			p.Dropped = lost - dropped
			return err
		}
	}
}

// ejected are some lines of a log that say why backends were ejected.
func ejected(log string) (lines []string) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, "reason=BackendEjected") && len(lines) < 10 {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// counts are what the agent's metrics say since it began.
type counts struct{ tcp, http, failed, cannot, ejected float64 }

func count(a *launch.Agent) (c counts, at time.Time, err error) {
	const probes = "lbproxy_health_probe_duration_seconds_count{"
	m, err := a.Metrics()
	c.tcp, c.http = sum(m, probes, `kind="tcp"`), sum(m, probes, `kind="http"`)
	c.failed, c.cannot = sum(m, probes, `result="unhealthy"`), sum(m, probes, `result="cannot"`)
	c.ejected = sum(m, "lbproxy_health_ejections_total{", "")
	return c, time.Now(), err
}

// writeTargets writes Services whose n endpoints are probed once a second.
func writeTargets(dir string, n int) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("manifests: %w", err)
	}
	at := targets.Addr()
	for i := 0; i*endpointsEach < n; i++ {
		check, port := "tcp", tcpPort
		if i%webShare == 0 {
			check, port = "http", httpPort
		}
		var text bytes.Buffer
		fmt.Fprintf(&text, `apiVersion: v1
kind: Service
metadata:
  name: probed-%[1]d
  namespace: bench
  annotations: {lbproxy.io/health-check: %[2]s, lbproxy.io/health-check-interval: 1s}
spec:
  clusterIP: 10.96.2.%[1]d
  ports: [{name: http, port: 80, targetPort: %[3]d}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: probed-%[1]d-1, namespace: bench, labels: {kubernetes.io/service-name: probed-%[1]d}}
addressType: IPv4
ports: [{name: http, port: %[3]d}]
endpoints:
`, i, check, port)
		for range min(endpointsEach, n-i*endpointsEach) {
			at = at.Next()
			fmt.Fprintf(&text, "- {addresses: [%s], nodeName: %s}\n", at, lab.Node)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("probed-%d.yaml", i)), text.Bytes(), 0o644); err != nil {
			return fmt.Errorf("manifests: %w", err)
		}
	}
	return nil
}

// sum is over the samples of a name that have a label.
func sum(m map[string]float64, name, label string) (n float64) {
	for sample, x := range m {
		if strings.HasPrefix(sample, name) && strings.Contains(sample, label) {
			n += x
		}
	}
	return n
}
