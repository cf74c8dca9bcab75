// SPDX-License-Identifier: Apache-2.0

//go:build root

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lab/nested"
)

const (
	nodeName  = "node1"
	node2Name = "node2"
	podPort   = 8080 // of the servers in the backend pods
	otherPort = 8081 // of another server in each of them

	agentTimeout = 20 * time.Second // to start and read everything, on a busy machine
	logShown     = 64 << 10         // bytes of the agent's log that a failed test shows
)

func TestMain(m *testing.M) {
	lab.Main()
	os.Exit(m.Run())
}

// stage is a lab whose host outside runs a control plane and whose node runs
// lbproxy.
type stage struct {
	lab     *lab.Lab
	cluster *Cluster
	bin     string // lbproxy
	logs    string // the directory of lbproxy's output
}

// newStage builds everything but the agent.
func newStage(t *testing.T) *stage {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a control plane")
	}
	s := &stage{bin: filepath.Join(t.TempDir(), "lbproxy"), logs: t.ArtifactDir()}
	s.build(t)
	var err error
	if s.lab, err = lab.New(lab.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.lab.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"backend1", "backend2", "backend3", "remote1"} {
		for _, at := range []target{{lab.TCP, lab.AnyAddr(podPort)}, {lab.UDP, lab.AnyAddr(podPort)},
			{lab.TCP, lab.AnyAddr(otherPort)}, {lab.UDP, lab.AnyAddr(otherPort)}} {
			if err := s.lab.Host(name).Serve(t.Context(), at.proto, at.to); err != nil {
				t.Fatal(err)
			}
		}
	}
	outside := s.lab.Host(lab.Outside)
	s.cluster = newCluster(t, Options{BindAddr: outside.Addr4, Start: outside.Start, Dial: dialFrom(outside)})
	s.putNodes(t)
	return s
}

// build makes s.bin the way the Makefile does.
func (s *stage) build(t *testing.T) {
	t.Helper()
	root, err := nested.Root()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-o", s.bin, "./cmd/lbproxy")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build lbproxy: %v\n%s", err, out)
	}
	t.Logf("lbproxy built in %v", time.Since(began).Round(time.Millisecond))
}

// dialFrom returns a dialer inside the host's network namespace. A goroutine
// that net.Dialer starts would be outside of it, so each address is one family.
func dialFrom(h *lab.Host) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = h.Do(func() (err error) {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}
}

func (s *stage) putNodes(t *testing.T) {
	t.Helper()
	for _, n := range []Node{
		{Name: nodeName, Addrs: s.lab.Host(lab.Node).Addrs(), PodCIDRs: []netip.Prefix{lab.NodePods4, lab.NodePods6}},
		{Name: node2Name, Addrs: s.lab.Host(lab.Node2).Addrs(), PodCIDRs: []netip.Prefix{lab.Node2Pods4, lab.Node2Pods6}},
	} {
		if _, err := s.cluster.PutNode(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
}

// endpoints returns those of the named pods, both families of each.
func (s *stage) endpoints(pods ...string) []discoveryv1.Endpoint {
	var eps []discoveryv1.Endpoint
	for _, name := range pods {
		node := nodeName
		if name == "remote1" {
			node = node2Name
		}
		for _, addr := range s.lab.Host(name).Addrs() {
			eps = append(eps, NewEndpoint(addr, node))
		}
	}
	return eps
}

// put stores svc.
func (s *stage) put(t *testing.T, svc *corev1.Service) *corev1.Service {
	t.Helper()
	got, err := s.cluster.PutService(t.Context(), svc)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// putPods makes pods the only endpoints of svc.
func (s *stage) putPods(t *testing.T, svc *corev1.Service, pods ...string) {
	t.Helper()
	if err := s.cluster.PutEndpoints(t.Context(), svc, s.endpoints(pods...)...); err != nil {
		t.Fatal(err)
	}
}

// drop deletes svc and its EndpointSlices.
func (s *stage) drop(t *testing.T, svc *corev1.Service) {
	t.Helper()
	if err := s.cluster.DeleteService(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
}

// agent is a running lbproxy.
type agent struct {
	cmd  *exec.Cmd
	log  string        // the path of its output
	done chan struct{} // closed once the process is reaped
}

// startAgent runs lbproxy on the node as the deployment does. Its output is
// added to the log of that name, which t shows if it fails. It ends with the lab
// at the latest.
func (s *stage) startAgent(t *testing.T, name, kubeconfig string) *agent {
	t.Helper()
	a := &agent{log: filepath.Join(s.logs, name+".log"), done: make(chan struct{})}
	t.Cleanup(func() { a.showLog(t) })
	out, err := os.OpenFile(a.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close() // the child has its own copy
	state := filepath.Join(filepath.Dir(s.bin), "state")
	a.cmd = exec.Command(s.bin, "run", "--kubeconfig="+kubeconfig, "--node-name="+nodeName,
		"--cgroup-root="+s.lab.CgroupRoot(), "--bpffs="+s.lab.BPFFS(), "--state-dir="+state,
		"--cluster-cidr="+lab.ClusterPods4.String()+","+lab.ClusterPods6.String(), "--log-level=debug")
	a.cmd.Stdout, a.cmd.Stderr = out, out
	a.cmd.Env = []string{"HOME=" + state} // above all no *_proxy
	if err := s.lab.Host(lab.Node).Start(a.cmd); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = a.cmd.Wait() // its state is looked at where it matters
		close(a.done)
	}()
	return a
}

// signal sends sig to a.
func (a *agent) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := a.cmd.Process.Signal(sig); err != nil {
		t.Errorf("lbproxy: signal %v: %v", sig, err)
	}
}

// kill ends a without a chance to say anything.
func (a *agent) kill(t *testing.T) {
	t.Helper()
	a.signal(t, syscall.SIGKILL)
	<-a.done
}

// stop ends a the way a kubelet does; that has to be a success.
func (a *agent) stop(t *testing.T) {
	t.Helper()
	a.signal(t, syscall.SIGTERM)
	select {
	case <-a.done:
	case <-time.After(stopGrace):
		t.Error("lbproxy: does not end on SIGTERM")
		a.kill(t)
	}
	if code := a.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("lbproxy: exit code %d, want 0", code)
	}
}

// running fails the test if a has ended.
func (a *agent) running(t *testing.T) {
	t.Helper()
	select {
	case <-a.done:
		t.Fatalf("lbproxy: ended by itself: %v", a.cmd.ProcessState)
	default:
	}
}

// showLog puts the end of a's output into that of a failed test.
func (a *agent) showLog(t *testing.T) {
	if !t.Failed() {
		return
	}
	out, err := os.ReadFile(a.log)
	if err != nil {
		t.Logf("lbproxy: %v", err)
	}
	t.Logf("lbproxy's log, %d bytes, ends with:\n%s", len(out), out[max(0, len(out)-logShown):])
}

// logged returns the first line of a's log that contains each of texts.
func (a *agent) logged(texts ...string) (string, error) {
	out, err := os.ReadFile(a.log)
	if err != nil {
		return "", fmt.Errorf("log: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		if containsAll(line, texts) {
			return strings.TrimSpace(line), nil
		}
	}
	return "", fmt.Errorf("log: no line with %q", texts)
}

// times returns how often a's log has text.
func (a *agent) times(t *testing.T, text string) int {
	t.Helper()
	out, err := os.ReadFile(a.log)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(out), text)
}

// quiet fails the test if a line of a's log contains each of texts.
func (a *agent) quiet(t *testing.T, texts ...string) {
	t.Helper()
	if line, err := a.logged(texts...); err == nil {
		t.Errorf("lbproxy: logged %s", line)
	}
}

func containsAll(s string, texts []string) bool {
	return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(s, text) })
}

// readyz asks lbproxy on the node whether the kernel has everything.
func (s *stage) readyz(ctx context.Context) (int, error) {
	client := &http.Client{
		Timeout:   time.Second,
		Transport: &http.Transport{DialContext: dialFrom(s.lab.Host(lab.Node)), DisableKeepAlives: true},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:10256/readyz", nil)
	if err != nil {
		return 0, fmt.Errorf("readyz: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("readyz: %w", err)
	}
	return resp.StatusCode, resp.Body.Close()
}

// awaitHealth waits until /readyz answers with code.
func (s *stage) awaitHealth(t *testing.T, code int) {
	t.Helper()
	s.await(t, fmt.Sprintf("readyz %d", code), agentTimeout, func() error {
		got, err := s.readyz(t.Context())
		if err == nil && got != code {
			err = fmt.Errorf("got %d", got)
		}
		return err
	})
}

// await fails the test unless ok returns nil within limit.
func (s *stage) await(t *testing.T, what string, limit time.Duration, ok func() error) {
	t.Helper()
	if err := poll(limit, ok); err != nil {
		t.Fatalf("%s: not within %v: %v", what, limit, err)
	}
}

var errNever = errors.New("never asked")

// poll calls ok until it returns nil. After limit it returns ok's last error.
func poll(limit time.Duration, ok func() error) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	err := errNever
	for deadline := time.Now().Add(limit); err != nil; <-tick.C {
		if err = ok(); err != nil && time.Now().After(deadline) {
			return err
		}
	}
	return nil
}
