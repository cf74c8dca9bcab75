// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/ebpf"
	"github.com/lbproxy/lbproxy/internal/dataplane/iptables"
	"github.com/lbproxy/lbproxy/internal/lb"
	"github.com/lbproxy/lbproxy/internal/server"
)

// fullPlane is a fakePlane that can do everything.
type fullPlane struct {
	fakePlane
	nodes []lb.Node
}

func (p *fullPlane) SetNode(n lb.Node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nodes = append(p.nodes, n)
}

func (p *fullPlane) Audit(context.Context, []*dataplane.Service) ([]string, error) {
	return []string{"a difference"}, nil
}

var (
	_ dataplane.Auditor    = (*fullPlane)(nil)
	_ dataplane.NodeSetter = (*fullPlane)(nil)
)

func TestObservedKeepsTheAuditor(t *testing.T) {
	plane := &fullPlane{fakePlane: fakePlane{services: map[string]*dataplane.Service{}}}
	var told []string
	ready := make(chan struct{})
	o := observer{
		ready:  ready,
		before: func(d dataplane.Delta) { told = append(told, fmt.Sprint("before ", d.Full)) },
		after:  func(_ dataplane.Delta, err error) { told = append(told, fmt.Sprint("after ", err)) },
		took:   func(_ time.Duration, changed [2]bool, full bool) { told = append(told, fmt.Sprint(changed, full)) },
	}
	dp := observed(plane, o)
	auditor, ok := dp.(dataplane.Auditor)
	if !ok {
		t.Fatal("what is observed cannot be audited")
	}
	if found, err := auditor.Audit(t.Context(), nil); len(found) != 1 || err != nil {
		t.Errorf("audit: %q, %v", found, err)
	}
	late, cancel := context.WithCancel(t.Context())
	cancel()
	if err := dp.Sync(late, dataplane.Delta{Full: true}); !errors.Is(err, context.Canceled) || len(told) > 0 {
		t.Errorf("a Sync before anybody knew the Node: %v, told of %q", err, told)
	}
	close(ready)
	six := lb.ServiceName{Object: lb.Object{Name: "a"}, Family: lb.IPv6}
	if err := dp.Sync(t.Context(), dataplane.Delta{Delete: []lb.ServiceName{six}}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"before false", "[false true] false", "after <nil>"}; !reflect.DeepEqual(told, want) {
		t.Errorf("told of %q, want %q", told, want)
	}
	if _, ok := observed(&plane.fakePlane, o).(dataplane.Auditor); ok {
		t.Error("what cannot be audited became an Auditor")
	}
}

func TestOwnNodeIsToldToLateListeners(t *testing.T) {
	var own ownNode
	var early, late []string
	own.tell(func(n lb.Node) { early = append(early, n.Zone) })
	own.set(lb.Node{Zone: "a"})
	own.set(lb.Node{Zone: "b"})
	own.tell(func(n lb.Node) { late = append(late, n.Zone) })
	own.set(lb.Node{Zone: "c"})
	if got, want := fmt.Sprint(early, late), "[a b c] [b c]"; got != want {
		t.Errorf("told %s, want %s", got, want)
	}
}

func TestAgentOptions(t *testing.T) {
	plane := &fullPlane{fakePlane: fakePlane{services: map[string]*dataplane.Service{}}}
	n := testNode(t, plane)
	n.cfg.AuditPeriod = time.Hour
	opts := n.agentOptions(server.NewMetrics("v", server.Sources{}), slog.New(slog.DiscardHandler))
	if _, ok := opts.Dataplane.(dataplane.Auditor); !ok || opts.AuditPeriod != time.Hour || opts.Health == nil || opts.Triggered == nil {
		t.Errorf("got %+v: want an Auditor, its period, and where health checks and trigger times go", opts)
	}
}

func TestOptionsOfTheDataplane(t *testing.T) {
	ports := lb.NodePortAddresses{Primary: true}
	got := ebpfOptions(config.Config{
		DetectLocalMode: lb.LocalBridgeInterface, PodBridgeInterface: "cbr0", NodePortAddresses: ports,
		MaxAffinities: 8, MaxSourceRanges: 9,
	}, nil)
	if want := (lb.LocalDetector{Mode: lb.LocalBridgeInterface, Interface: "cbr0"}); !reflect.DeepEqual(got.Local, want) ||
		!reflect.DeepEqual(got.NodePorts, ports) || got.Sizes != (ebpf.Sizes{Affinities: 8, SourceRanges: 9}) {
		t.Errorf("got %+v", got)
	}
}

func TestOptionsOfIPTables(t *testing.T) {
	cfg := config.Default()
	cfg.StateDir = "/state"
	cfg.ClusterCIDR = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	cfg.NodePortAddresses = lb.NodePortAddresses{Primary: true}
	cfg.IPTables = config.IPTablesConfig{Backend: config.Legacy, MasqueradeBit: 3}
	cfg.Conntrack = config.ConntrackConfig{
		MaxPerCore: 1, Min: 2, TCPEstablished: 3, TCPCloseWait: 4, TCPBeLiberal: true, UDPTimeout: 5, UDPStreamTimeout: 6,
	}
	got := iptablesOptions(cfg, nil)
	want := iptables.Options{
		Backend: "legacy", MasqueradeBit: 3, LockFile: "/state/lock",
		Local:     lb.LocalDetector{Mode: lb.LocalClusterCIDR, Ranges: cfg.ClusterCIDR},
		NodePorts: lb.NodePortAddresses{Primary: true},
		Conntrack: got.Conntrack,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if text := fmt.Sprintf("%+v", got.Conntrack); strings.Trim(text, "{}") == "" || strings.Contains(text, ":0") {
		t.Errorf("conntrack %s: want what the configuration says", text)
	}
}

func TestCheckTellsWhoIsAPod(t *testing.T) {
	ranges := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, tc := range []struct {
		d     lb.LocalDetector
		level string
		want  string
	}{
		{lb.LocalDetector{Mode: lb.LocalClusterCIDR}, levelWarn, "ClusterCIDR without cluster-cidr"},
		{lb.LocalDetector{Mode: lb.LocalClusterCIDR, Ranges: ranges}, levelOK, "addresses in 10.0.0.0/8, fd00::/8 are pods"},
		{lb.LocalDetector{Mode: lb.LocalNodeCIDR}, levelOK, "podCIDRs of this Node"},
		{lb.LocalDetector{Mode: lb.LocalBridgeInterface, Interface: "lo"}, levelOK, "BridgeInterface: what comes from bridge lo is from pods"},
		{lb.LocalDetector{Mode: lb.LocalBridgeInterface, Interface: "nonexistent"}, levelWarn, "is not there yet"},
		{lb.LocalDetector{Mode: lb.LocalInterfaceNamePrefix, Interface: "cali"}, levelOK, "devices named cali..."},
	} {
		if got := checkPods(tc.d); got.Level != tc.level || !strings.Contains(got.Detail, tc.want) {
			t.Errorf("%+v: got %+v, want %s, %q", tc.d, got, tc.level, tc.want)
		}
	}
	for want, a := range map[string]lb.NodePortAddresses{
		"at every address":                                          {},
		"at the addresses of the Node object; of":                   {Primary: true},
		"the Node object and addresses in 10.0.0.0/8, fd00::/8; of": {Primary: true, Ranges: ranges},
	} {
		if got := checkNodePorts(config.Config{NodePortAddresses: a}); got.Level != levelOK || !strings.Contains(got.Detail, want) {
			t.Errorf("%+v: got %+v, want %q", a, got, want)
		}
	}
}

// nodeServer is an API server with one Node and nothing else. It keeps Events.
type nodeServer struct {
	*httptest.Server
	node   string // as JSON
	watch  chan string
	events chan map[string]any
}

func newNodeServer(t *testing.T) (s *nodeServer, kubeconfig string) {
	t.Helper()
	s = &nodeServer{watch: make(chan string), events: make(chan map[string]any, 10)}
	s.node = `{"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n1", "resourceVersion": "1"},
		"spec": {"podCIDRs": ["10.244.1.0/24"]}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}`
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: %q}}],
		contexts: [{name: c, context: {cluster: c}}]}`, s.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return s, kubeconfig
}

func (s *nodeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	typed := r.URL.Path == "/api/v1/nodes" && !strings.Contains(r.Header.Get("Accept"), "PartialObjectMetadata")
	switch {
	case r.Method == http.MethodPost:
		var event map[string]any
		body, err := io.ReadAll(r.Body)
		if err == nil && json.Unmarshal(body, &event) != nil {
			event = map[string]any{"raw": string(body)} // protobuf
		}
		s.events <- event
		http.Error(w, "not kept", http.StatusConflict)
	case r.URL.Query().Has("sendInitialEvents"): // a server without WatchList says so
		http.Error(w, "not supported", http.StatusUnprocessableEntity)
	case r.URL.Query().Has("watch"):
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		for {
			select {
			case <-r.Context().Done():
				return
			case event := <-s.only(typed):
				fmt.Fprintln(w, event)
				w.(http.Flusher).Flush()
			}
		}
	default:
		kind, version, items := "PartialObjectMetadataList", "meta.k8s.io/v1", ""
		switch {
		case typed:
			kind, version, items = "NodeList", "v1", s.node
		case r.URL.Path == "/api/v1/services":
			kind, version = "ServiceList", "v1"
		case strings.HasSuffix(r.URL.Path, "/endpointslices"):
			kind, version = "EndpointSliceList", "discovery.k8s.io/v1"
		}
		fmt.Fprintf(w, `{"apiVersion": %q, "kind": %q, "metadata": {"resourceVersion": "1"}, "items": [%s]}`, version, kind, items)
	}
}

// only returns the events of the Node to who watches it.
func (s *nodeServer) only(typed bool) chan string {
	if typed {
		return s.watch
	}
	return nil
}

// TestRunFollowsTheNode: its Events, its taint and its deletion.
func TestRunFollowsTheNode(t *testing.T) {
	api, kubeconfig := newNodeServer(t)
	plane := &fullPlane{fakePlane: fakePlane{services: map[string]*dataplane.Service{}}}
	proc := start(t, plane, "--kubeconfig="+kubeconfig)
	health := "http://" + proc.await(func(r record) bool { return r.Server == "health" }).Address
	fetch(t, health+"/readyz", func(code int, _ string) bool { return code == http.StatusOK })
	fetch(t, health+"/healthz", func(code int, body string) bool {
		return code == http.StatusOK && strings.Contains(body, `"nodeEligible":true`)
	})
	event := fmt.Sprint(<-api.events)
	for _, want := range []string{"Starting", "Normal", "Node", "n1"} {
		if !strings.Contains(event, want) {
			t.Errorf("event %q lacks %q", event, want)
		}
	}
	tainted := strings.Replace(api.node, `"spec": {`, `"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}], `, 1)
	for _, change := range []struct {
		kind, node string
		code       int
	}{
		{"MODIFIED", tainted, http.StatusServiceUnavailable},
		{"MODIFIED", api.node, http.StatusOK},
		{"DELETED", api.node, http.StatusServiceUnavailable},
		{"ADDED", api.node, http.StatusOK},
	} {
		api.watch <- strings.ReplaceAll(fmt.Sprintf(`{"type": %q, "object": %s}`, change.kind, change.node), "\n", " ")
		fetch(t, health+"/healthz", func(code int, _ string) bool { return code == change.code })
		fetch(t, health+"/livez", func(code int, _ string) bool { return code == http.StatusOK })
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := <-proc.code; code != exitOK {
		t.Errorf("code %d", code)
	}
	plane.mu.Lock()
	defer plane.mu.Unlock()
	var known []bool
	for _, n := range plane.nodes {
		known = append(known, n.Known)
	}
	if want := []bool{true, true, true, false, true}; !reflect.DeepEqual(known, want) {
		t.Errorf("the dataplane was told of %+v, want a Node that is there: %v", plane.nodes, want)
	}
}

// TestRunTellsTheNodeOfItsPorts: an address that is taken is an Event.
func TestRunTellsTheNodeOfItsPorts(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	api, kubeconfig := newNodeServer(t)
	addr := taken.Addr().String()
	proc := start(t, &fullPlane{fakePlane: fakePlane{services: map[string]*dataplane.Service{}}},
		"--kubeconfig="+kubeconfig, "--healthz-bind-address="+addr, "--metrics-bind-address="+addr)
	events := fmt.Sprint(<-api.events, <-api.events, <-api.events)
	for _, want := range []string{"Starting", "FailedToStartProxierHealthcheck", "FailedToStartMetricServer", "Warning", addr} {
		if !strings.Contains(events, want) {
			t.Errorf("events %q lack %q", events, want)
		}
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := <-proc.code; code != exitOK {
		t.Errorf("code %d", code)
	}
}

// TestRunServesHealthChecks: from the manifest to the port.
func TestRunServesHealthChecks(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	asked := make(chan string, 10)
	text := strings.Replace(manifest, "  clusterIP: 10.96.1.1\n",
		"  clusterIP: 10.96.1.1\n  type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: 30001\n", 1)
	text = strings.Replace(text, "[10.244.1.9]}", "[10.244.1.9], nodeName: n1}", 1)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "web.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	dp := &fullPlane{fakePlane: fakePlane{services: map[string]*dataplane.Service{}}}
	proc := startWith(t, kernel{
		ebpf: opens(dp), iptables: noState(),
		listen: func(_ context.Context, network, addr string) (net.Listener, error) {
			asked <- network + " " + addr
			return ln, nil
		},
	}, "--manifests="+dir, "--nodeport-addresses=127.0.0.1/32")
	health := "http://" + proc.await(func(r record) bool { return r.Server == "health" }).Address
	fetch(t, health+"/readyz", func(code int, _ string) bool { return code == http.StatusOK })
	if got, want := <-asked, "tcp4 127.0.0.1:30001"; got != want {
		t.Errorf("listens at %s, want %s", got, want)
	}
	fetch(t, "http://"+ln.Addr().String()+"/", func(code int, body string) bool {
		return code == http.StatusOK &&
			body == `{"service":{"namespace":"shop","name":"web"},"localEndpoints":1,"serviceProxyHealthy":true}`+"\n"
	})
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := <-proc.code; code != exitOK {
		t.Errorf("code %d", code)
	}
}

// TestRunWithoutItsNode: with an API server the node is not eligible without a Node.
func TestRunWithoutItsNode(t *testing.T) {
	api, kubeconfig := newNodeServer(t)
	api.node = ""
	dp := &fullPlane{fakePlane: fakePlane{services: map[string]*dataplane.Service{}}}
	proc := start(t, dp, "--kubeconfig="+kubeconfig)
	health := "http://" + proc.await(func(r record) bool { return r.Server == "health" }).Address
	fetch(t, health+"/readyz", func(code int, _ string) bool { return code == http.StatusOK })
	fetch(t, health+"/healthz", func(code int, _ string) bool { return code == http.StatusServiceUnavailable })
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := <-proc.code; code != exitOK {
		t.Errorf("code %d", code)
	}
}
