// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/klog/v2"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

const manifest = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.1.1
  ports: [{name: http, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.1.9]}]
`

// fakePlane holds what it was told.
type fakePlane struct {
	mu       sync.Mutex
	services map[string]*dataplane.Service
	closed   bool
	broken   error // Run fails with it
	live     map[netip.AddrPort]uint64
}

func (p *fakePlane) Sync(_ context.Context, d dataplane.Delta) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d.Full {
		clear(p.services)
	}
	for _, s := range d.Put {
		p.services[s.Name.String()] = s
	}
	for _, n := range d.Delete {
		delete(p.services, n.String())
	}
	return nil
}

func (p *fakePlane) Run(ctx context.Context) error {
	if p.broken == nil {
		<-ctx.Done()
	}
	return p.broken
}

func (p *fakePlane) Stats() (dataplane.Stats, error) {
	return dataplane.Stats{Maps: []dataplane.MapUsage{{Name: "services", Used: 1, Max: 2}}}, nil
}

// Live says the same of every Service.
func (p *fakePlane) Live(lb.ServiceName) map[netip.AddrPort]uint64 { return p.live }

func (p *fakePlane) Writes() uint64 { return 7 }

func (p *fakePlane) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return nil
}

// record is one line of the log.
type record struct{ Level, Msg, Server, Address, Variable, Node, Mode, Dataplane, Because string }

// process is `lbproxy run` in this process.
type process struct {
	t    *testing.T
	logs chan record
	code chan int
}

func start(t *testing.T, p plane, args ...string) *process {
	t.Helper()
	return startWith(t, kernel{ebpf: opens(p), iptables: noState()}, args...)
}

// opens is a dataplane that works: it is p.
func opens(p plane) access {
	a := noState()
	a.open = func(config.Config, announcer, *slog.Logger) (plane, error) { return p, nil }
	return a
}

func startWith(t *testing.T, k kernel, args ...string) *process {
	t.Helper()
	r, w := io.Pipe()
	proc := &process{t, make(chan record, 100), make(chan int, 1)}
	a := &app{
		stdout: io.Discard, stderr: w, environ: []string{"LBPROXY_TYPO=1", "LBPROXY_LOG_FORMAT=json"},
		kernel: k, now: time.Now,
	}
	args = append([]string{"run", "--node-name=n1", "--healthz-bind-address=127.0.0.1:0", "--metrics-bind-address=127.0.0.1:0"}, args...)
	go func() {
		proc.code <- a.execute(args)
		w.Close()
	}()
	go func() {
		defer close(proc.logs)
		for d := json.NewDecoder(r); ; {
			var rec record
			if d.Decode(&rec) != nil {
				_, _ = io.Copy(io.Discard, r)
				return
			}
			proc.logs <- rec
		}
	}()
	return proc
}

// await returns the first record that matches.
func (p *process) await(match func(record) bool) record {
	p.t.Helper()
	late := time.After(2 * time.Minute)
	for {
		select {
		case rec, open := <-p.logs:
			if !open {
				p.t.Fatal("the log ended")
			}
			if match(rec) {
				return rec
			}
		case <-late:
			p.t.Fatal("no such record")
		}
	}
}

// fetch polls url until done likes the answer.
func fetch(t *testing.T, url string, done func(code int, body string) bool) string {
	t.Helper()
	late := time.After(2 * time.Minute)
	for {
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if done(resp.StatusCode, string(body)) {
			return string(body)
		}
		select {
		case <-late:
			t.Fatalf("%s: %d %s", url, resp.StatusCode, body)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "web.yaml"), []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	plane := &fakePlane{services: map[string]*dataplane.Service{}}
	proc := start(t, plane, "--manifests="+dir)
	proc.await(func(r record) bool { return r.Level == "WARN" && r.Variable == "LBPROXY_TYPO" })
	proc.await(func(r record) bool { return r.Msg == "starting" && r.Node == "n1" })
	addrs := map[string]string{}
	for len(addrs) < 2 {
		r := proc.await(func(r record) bool { return r.Msg == "serving" })
		addrs[r.Server] = "http://" + r.Address
	}
	fetch(t, addrs["health"]+"/healthz", func(code int, body string) bool {
		return code == 200 && strings.Contains(body, "lastUpdated")
	})
	fetch(t, addrs["metrics"]+"/metrics", func(_ int, body string) bool {
		return strings.Contains(body, "\nlbproxy_services 1\n") && strings.Contains(body, "\nlbproxy_dataplane_writes_total 7\n") &&
			strings.Contains(body, "\nlbproxy_dataplane_info{dataplane=\"ebpf\"} 1\n") &&
			strings.Contains(body, `lbproxy_map_capacity{map="services"} 2`) && !strings.Contains(body, "lbproxy_sync_duration_seconds_count 0")
	})
	body := fetch(t, addrs["metrics"]+"/configz", func(code int, _ string) bool { return code == 200 })
	if !strings.Contains(body, `"nodeName":"n1"`) || !strings.Contains(body, `"logFormat":"LBPROXY_LOG_FORMAT"`) {
		t.Errorf("configz %s", body)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	proc.await(func(r record) bool { return strings.HasPrefix(r.Msg, "stopped; the rules stay") })
	if code := <-proc.code; code != exitOK {
		t.Errorf("code %d", code)
	}
	svc := plane.services["shop/web:http/TCP/IPv4"]
	if svc == nil || len(svc.Cluster.Backends) != 1 || !plane.closed {
		t.Errorf("services %v, closed %v; want shop/web with one backend, closed", plane.services, plane.closed)
	}
}

// apiServer answers lists with nothing and lets watches hang, as an API server
// of an empty cluster. Its kubeconfig is returned with the clients' User-Agents.
func apiServer(t *testing.T) (kubeconfig string, agents *sync.Map) {
	t.Helper()
	agents = &sync.Map{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		agents.Store(r.UserAgent(), true)
		if r.URL.Query().Has("sendInitialEvents") { // a server without WatchList says so
			http.Error(w, "not supported", http.StatusUnprocessableEntity)
			return
		}
		if r.URL.Query().Has("watch") {
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return
		}
		list := map[string][2]string{
			"/api/v1/services": {"v1", "ServiceList"}, "/api/v1/nodes": {"meta.k8s.io/v1", "PartialObjectMetadataList"},
			"/api/v1/pods": {"meta.k8s.io/v1", "PartialObjectMetadataList"},
			"/apis/discovery.k8s.io/v1/endpointslices": {"discovery.k8s.io/v1", "EndpointSliceList"},
		}[r.URL.Path]
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"apiVersion": %q, "kind": %q, "metadata": {"resourceVersion": "1"}, "items": []}`, list[0], list[1])
	}))
	t.Cleanup(srv.Close)
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: %q}}],
		contexts: [{name: c, context: {cluster: c}}]}`, srv.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig, agents
}

func TestRunAppliesAnnotationsAndDefaults(t *testing.T) {
	dir := t.TempDir()
	text := strings.Replace(manifest, "namespace: shop}\nspec", "namespace: shop, annotations: {lbproxy.io/algorithm: magic}}\nspec", 1)
	text = strings.Replace(text, "[10.244.1.9]}", "[10.244.1.9], targetRef: {kind: Pod, name: p}}", 1) +
		"---\napiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop, labels: {lbproxy.io/weight: \"7\"}}\n" +
		"---\napiVersion: v1\nkind: Pod\nmetadata: {name: q, namespace: shop, labels: {lbproxy.io/weight: \"-7\"}}\n"
	if err := os.WriteFile(filepath.Join(dir, "web.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	plane := &fakePlane{services: map[string]*dataplane.Service{}}
	proc := start(t, plane, "--manifests="+dir, "--algorithm=round-robin", "--slow-start=45s")
	r := proc.await(func(r record) bool { return r.Server == "metrics" })
	fetch(t, "http://"+r.Address+"/metrics", func(_ int, body string) bool {
		return strings.Contains(body, "\nlbproxy_services 1\n") &&
			strings.Contains(body, "\n"+`lbproxy_endpoints_problems{kind="Pod",reason="InvalidWeight"} 1`+"\n") &&
			strings.Contains(body, "\n"+`lbproxy_endpoints_problems{kind="Service",reason="InvalidAlgorithm"} 1`+"\n")
	})
	plane.mu.Lock()
	svc := plane.services["shop/web:http/TCP/IPv4"]
	plane.mu.Unlock()
	if svc == nil || svc.Balance.Algorithm != "round-robin" || svc.Balance.SlowStart != 45*time.Second || svc.Cluster.Backends[0].Weight != 7 {
		t.Errorf("got %+v; want round-robin, a slow start of 45s, weight 7", svc)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := <-proc.code; code != exitOK {
		t.Errorf("code %d", code)
	}
}

func TestRunWithAnAPIServer(t *testing.T) {
	kubeconfig, agents := apiServer(t)
	proc := start(t, &fakePlane{services: map[string]*dataplane.Service{}}, "--kubeconfig="+kubeconfig)
	r := proc.await(func(r record) bool { return r.Server == "health" })
	fetch(t, "http://"+r.Address+"/livez", func(code int, _ string) bool { return code == http.StatusOK })
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := <-proc.code; code != exitOK {
		t.Errorf("code %d", code)
	}
	agents.Range(func(name, _ any) bool {
		if name != "lbproxy/"+version {
			t.Errorf("User-Agent %q, want lbproxy/%s", name, version)
		}
		return true
	})
}

func TestRunEndsWhenAPartFails(t *testing.T) {
	proc := start(t, &fakePlane{broken: errors.New("netlink is gone")}, "--manifests="+t.TempDir())
	if code := <-proc.code; code != exitFailure {
		t.Errorf("code %d, want %d", code, exitFailure)
	}
}

// lockedBuffer may be written from any goroutine.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestClientGoLogsHere(t *testing.T) {
	var out lockedBuffer // what other tests left behind may log, too
	newLogger(&out, config.Config{LogFormat: config.JSON})
	klog.Info("chatter")
	klog.ErrorS(errors.New("no route"), "watch failed")
	if got := out.String(); strings.Contains(got, "chatter") || !strings.Contains(got, `"msg":"watch failed"`) ||
		!strings.Contains(got, `"component":"client-go"`) || !strings.Contains(got, "no route") {
		t.Errorf("log %q; want the error and not the chatter", got)
	}
}
