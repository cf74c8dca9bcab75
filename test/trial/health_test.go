// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	// envWeb makes this program a web server in a lab, which answers with the status in
	// the file that it names, and one of gRPC, which is serving if that is 200.
	envWeb   = "TRIAL_WEB"
	webPort  = 8081
	grpcPort = 8082
)

// often are annotations by which probes are made and count soon.
const often = "lbproxy.io/health-check-interval: 200ms, lbproxy.io/health-check-fast-interval: 100ms, " +
	"lbproxy.io/health-check-fall: '2', lbproxy.io/health-check-rise: '2'"

// byTCP and byHTTP say how backends are probed, and that nothing else counts.
const (
	activeOnly = "lbproxy.io/health-passive: 'false'"
	byTCP      = "lbproxy.io/health-check: tcp, " + often
	byGRPC     = "lbproxy.io/health-check: grpc, lbproxy.io/health-check-port: '8082', " + often
	byHTTP     = "lbproxy.io/health-check: http, lbproxy.io/health-check-port: '8081', lbproxy.io/health-check-path: /ready, " + often
)

// serveWeb is the life of such a server.
func serveWeb(file string) error {
	at, err := net.Listen("tcp", fmt.Sprintf(":%d", grpcPort))
	if err != nil {
		return err
	}
	rpc := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(rpc, &healths{file: file})
	go func() { _ = rpc.Serve(at) }()
	return http.ListenAndServe(fmt.Sprintf(":%d", webPort), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(statusIn(file))
	}))
}

// statusIn returns the status that a file has.
func statusIn(file string) int {
	text, err := os.ReadFile(file)
	status, serr := strconv.Atoi(string(text))
	if err != nil || serr != nil {
		return http.StatusNotImplemented
	}
	return status
}

// healths answers by the gRPC health protocol.
type healths struct {
	grpc_health_v1.UnimplementedHealthServer
	file string
}

// Check says that the server is serving, or not.
func (h *healths) Check(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	status := grpc_health_v1.HealthCheckResponse_NOT_SERVING
	if statusIn(h.file) == http.StatusOK {
		status = grpc_health_v1.HealthCheckResponse_SERVING
	}
	return &grpc_health_v1.HealthCheckResponse{Status: status}, nil
}

// says adds annotations to a Service.
func says(manifest string, annotations ...string) string {
	const last = "lbproxy.io/algorithm: round-robin"
	return strings.Replace(manifest, last, strings.Join(append([]string{last}, annotations...), ", "), 1)
}

// web starts a web server on a pod. status changes what it answers.
func (r *rig) web(pod string) (status func(int)) {
	r.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	file := filepath.Join(r.lab.Dir(), "status-"+pod)
	status = func(code int) {
		r.t.Helper()
		err := os.WriteFile(file+".new", []byte(strconv.Itoa(code)), 0o644)
		if err == nil {
			err = os.Rename(file+".new", file)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	status(http.StatusOK)
	cmd := r.lab.Host(pod).Command(r.t.Context(), exe)
	cmd.Env = append(os.Environ(), envWeb+"="+file)
	cmd.Stderr = os.Stderr
	if err := r.lab.Host(pod).Start(cmd); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		_ = cmd.Process.Kill() // an error says that it has ended already
		_ = cmd.Wait()         // killed: there is no other way for it to end
	})
	return status
}

// revive starts the server of a pod whose process was killed.
func (r *rig) revive(pod string) {
	r.t.Helper()
	if err := r.lab.Host(pod).Restart(); err != nil {
		r.t.Fatal(err)
	}
	if err := r.lab.Host(pod).Serve(r.t.Context(), lab.TCP, lab.AnyAddr(backendPort)); err != nil {
		r.t.Fatal(err)
	}
}

// backend is what the log calls the backend of a pod.
func (r *rig) backend(pod string) string {
	return fmt.Sprintf("backend=%s:%d", r.lab.Host(pod).Addr4, backendPort)
}

// answered are the pods that answer the clients, and how many connections fail.
func (r *rig) answered(at vip, from []string, each int) (pods []string, failed int) {
	for _, from := range from {
		for range each {
			if res := r.dial(from, at, 2*time.Second); res.Kind != lab.OK {
				failed++
			} else if !slices.Contains(pods, res.Backend) {
				pods = append(pods, res.Backend)
			}
		}
	}
	slices.Sort(pods)
	return pods, failed
}

// settles waits until exactly these pods answer every client, and no connection fails.
func (r *rig) settles(at vip, pods ...string) {
	r.t.Helper()
	eventually(r.t, fmt.Sprintf("%v answer at %s, and nobody else", pods, at), func() bool {
		got, failed := r.answered(at, clients, 2*len(pods)+2)
		return failed == 0 && slices.Equal(got, pods)
	})
}

// only checks that every client is answered, by nobody but these pods. With other traffic
// the turns of a client may skip some of them.
func (r *rig) only(at vip, pods ...string) {
	r.t.Helper()
	got, failed := r.answered(at, clients, 2*len(pods)+2)
	if failed > 0 || slices.ContainsFunc(got, func(pod string) bool { return !slices.Contains(pods, pod) }) {
		r.t.Errorf("%v answer at %s, %d connections failed; want only %v, and none to fail", got, at, failed, pods)
	}
}

// dataplanes are the flags of both.
var dataplanes = map[string][]string{
	"ebpf":     {"--dataplane=ebpf"},
	"iptables": {"--dataplane=iptables", "--iptables-backend=nft"},
}

// eachDataplane runs a test with both.
func eachDataplane(t *testing.T, f func(t *testing.T, flags []string)) {
	for name, flags := range dataplanes {
		t.Run(name, func(t *testing.T) { f(t, flags) })
	}
}

// A process that dies is out when probes say so, and back when they say that.
func TestProbesFollowAProcess(t *testing.T) {
	eachDataplane(t, func(t *testing.T, flags []string) {
		r := newRig(t)
		r.put("web.yaml", says(r.manifest("web", webVIP, "backend1", "backend2", "backend3"), byTCP, activeOnly))
		a := r.run(flags...)
		r.settles(webVIP, "backend1", "backend2", "backend3")

		r.lab.Host("backend1").Kill()
		a.awaitLog("reason=BackendEjected", r.backend("backend1"), "refused")
		r.settles(webVIP, "backend2", "backend3")
		r.lbproxy("get", "health").want(t, 0, "ejected", "refused")

		tr := r.traffic(webVIP)
		r.revive("backend1")
		a.awaitLog("reason=BackendRestored", r.backend("backend1"))
		r.settles(webVIP, "backend1", "backend2", "backend3")
		tr.stop()
	})
}

// Without probes the traffic tells: the first connection that is refused is the last, or
// nearly so. With iptables it takes until rules are written, which is as long as it is.
func TestTrafficTellsOfAProcess(t *testing.T) {
	eachDataplane(t, func(t *testing.T, flags []string) {
		r := newRig(t)
		r.put("web.yaml", r.manifest("web", webVIP, "backend1", "backend2", "backend3"))
		a := r.run(flags...)
		r.settles(webVIP, "backend1", "backend2", "backend3")

		r.lab.Host("backend2").Kill()
		_, failed := r.answered(webVIP, clients, 12)
		if atOnce := slices.Contains(flags, "--dataplane=ebpf"); failed < 1 || atOnce && failed > 6 {
			t.Errorf("%d of %d connections failed, want one, and by eBPF no more than 6", failed, 12*len(clients))
		}
		t.Logf("%d of %d connections failed", failed, 12*len(clients))
		a.awaitLog("reason=BackendEjected", r.backend("backend2"), "connection refused")
		r.settles(webVIP, "backend1", "backend3")

		tr := r.traffic(webVIP)
		r.revive("backend2")
		a.awaitLog("reason=BackendRestored", r.backend("backend2"))
		r.settles(webVIP, "backend1", "backend2", "backend3")
		tr.stop()
	})
}

// A backend that does not answer any more is found out by those who wait for it.
func TestTrafficTellsOfSilence(t *testing.T) {
	eachDataplane(t, func(t *testing.T, flags []string) {
		r := newRig(t)
		r.put("web.yaml", r.manifest("web", webVIP, "backend1", "backend2", "backend3"))
		a := r.run(flags...)
		r.settles(webVIP, "backend1", "backend2", "backend3")

		r.nft("backend2", "add table inet hole; add chain inet hole in { type filter hook input priority 0; policy drop; }")
		_, failed := r.answered(webVIP, clients, 12)
		if failed == 0 {
			t.Error("every connection was answered")
		}
		t.Logf("%d of %d connections failed", failed, 12*len(clients))
		a.awaitLog("reason=BackendEjected", r.backend("backend2"), "connection unanswered")
		r.settles(webVIP, "backend1", "backend3")

		tr := r.traffic(webVIP)
		r.nft("backend2", "delete table inet hole")
		a.awaitLog("reason=BackendRestored", r.backend("backend2"))
		r.settles(webVIP, "backend1", "backend2", "backend3")
		tr.stop()
	})
}

// What HTTP says counts, until it would leave too few; no connection ever fails.
func TestStatusesAndPanic(t *testing.T) {
	eachDataplane(t, func(t *testing.T, flags []string) {
		r := newRig(t)
		all := []string{"backend1", "backend2", "backend3"}
		status := map[string]func(int){}
		for _, pod := range all {
			status[pod] = r.web(pod)
		}
		r.put("web.yaml", says(r.manifest("web", webVIP, all...), byHTTP))
		a := r.run(flags...)
		tr := r.traffic(webVIP)
		r.settles(webVIP, all...)

		status["backend1"](http.StatusServiceUnavailable)
		a.awaitLog("reason=BackendEjected", r.backend("backend1"), "503")
		r.settles(webVIP, "backend2", "backend3")

		for _, pod := range all {
			status[pod](http.StatusServiceUnavailable)
		}
		a.awaitLog("reason=HealthIgnored")
		r.settles(webVIP, all...)
		tr.flows()

		status["backend3"](http.StatusNoContent)
		a.awaitLog("reason=BackendRestored", r.backend("backend3"))
		r.settles(webVIP, "backend3")
		for _, pod := range all {
			status[pod](http.StatusOK)
		}
		r.settles(webVIP, all...)
		tr.stop()
	})
}

// The only backend of a Service stays, whatever is thought of it.
func TestOnlyBackendStays(t *testing.T) {
	r := newRig(t)
	status := r.web("backend1")
	r.put("web.yaml", says(r.manifest("web", webVIP, "backend1"), byHTTP))
	a := r.run()
	tr := r.traffic(webVIP)
	status(http.StatusServiceUnavailable)
	a.awaitLog("reason=BackendEjected", r.backend("backend1"), "503")
	a.awaitLog("reason=HealthIgnored", r.backend("backend1"))
	r.lbproxy("get", "health").want(t, 0, "ejected", "503")
	tr.flows()
	r.serves(webVIP, "backend1")
	status(http.StatusOK)
	a.awaitLog("reason=BackendRestored", r.backend("backend1"))
	tr.flows()
	tr.stop()
}

// A Service of IPv6 only is watched as any, by probes and by connections.
func TestIPv6OnlyProbes(t *testing.T) {
	eachDataplane(t, func(t *testing.T, flags []string) {
		r := newRig(t)
		const at = vip("[fd00:10:96::50]:80")
		all := []string{"backend1", "backend2", "backend3"}
		text := r.manifest("web", at, all...)
		for _, pod := range all {
			h := r.lab.Host(pod)
			text = strings.ReplaceAll(text, fmt.Sprintf("[%s]", h.Addr4), fmt.Sprintf("['%s']", h.Addr6))
		}
		text = strings.ReplaceAll(text, "addressType: IPv4", "addressType: IPv6")
		r.put("web.yaml", says(text, byTCP, activeOnly))
		a := r.run(flags...)
		r.settles(at, all...)
		six := fmt.Sprintf("backend=[%s]:%d", r.lab.Host("backend1").Addr6, backendPort)
		r.lab.Host("backend1").Kill()
		a.awaitLog("reason=BackendEjected", six, "tcp: connection refused")
		r.settles(at, "backend2", "backend3")
		r.revive("backend1")
		a.awaitLog("reason=BackendRestored", six)
		r.settles(at, all...)

		r.put("web.yaml", text) // without probes
		r.settles(at, all...)
		r.lab.Host("backend1").Kill()
		eventually(t, "connections tell of backend1", func() bool { // iptables listens a second later
			r.answered(at, clients, 4)
			return a.log.line("reason=BackendEjected", six, "connection refused; tcp") != ""
		})
		r.settles(at, "backend2", "backend3")
	})
}

// What gRPC says counts.
func TestGRPCProbes(t *testing.T) {
	eachDataplane(t, func(t *testing.T, flags []string) {
		r := newRig(t)
		all := []string{"backend1", "backend2", "backend3"}
		status := r.web("backend1")
		r.web("backend2")
		r.web("backend3")
		r.put("web.yaml", says(r.manifest("web", webVIP, all...), byGRPC))
		a := r.run(flags...)
		r.settles(webVIP, all...)
		tr := r.traffic(webVIP)
		status(http.StatusServiceUnavailable)
		a.awaitLog("reason=BackendEjected", r.backend("backend1"), "the backend says NOT_SERVING")
		r.settles(webVIP, "backend2", "backend3")
		status(http.StatusOK)
		a.awaitLog("reason=BackendRestored", r.backend("backend1"))
		r.settles(webVIP, all...)
		tr.stop()
	})
}

// What is known stays in the kernel when the agent is killed, and traffic goes on.
func TestKilledWhileABackendIsOut(t *testing.T) {
	eachDataplane(t, func(t *testing.T, flags []string) {
		r := newRig(t)
		r.put("web.yaml", says(r.manifest("web", webVIP, "backend1", "backend2", "backend3"), byTCP))
		a := r.run(flags...)
		r.settles(webVIP, "backend1", "backend2", "backend3")
		r.lab.Host("backend1").Kill()
		// By probes alone, whether one has found it healthy before or not.
		a.awaitLog("reason=BackendEjected", r.backend("backend1"))
		r.settles(webVIP, "backend2", "backend3")

		tr := r.traffic(webVIP)
		a.end(syscall.SIGKILL)
		tr.flows()
		r.only(webVIP, "backend2", "backend3")
		r.revive("backend1")
		r.only(webVIP, "backend2", "backend3") // nobody is there to find out
		tr.flows()
		r.run(flags...)
		r.settles(webVIP, "backend1", "backend2", "backend3")
		tr.stop()
	})
}

// Annotations that say nothing valid leave things as they were.
func TestInvalidHealthAnnotations(t *testing.T) {
	r := newRig(t)
	status := r.web("backend1")
	for _, pod := range []string{"backend2", "backend3"} {
		r.web(pod)
	}
	good := says(r.manifest("web", webVIP, "backend1", "backend2", "backend3"), byHTTP)
	r.put("web.yaml", good)
	a := r.run()
	tr := r.traffic(webVIP)
	status(http.StatusServiceUnavailable)
	a.awaitLog("reason=BackendEjected", r.backend("backend1"), "503")
	r.settles(webVIP, "backend2", "backend3")
	for _, tc := range []struct{ good, bad, field string }{
		{"health-check: http", "health-check: httpp", "lbproxy.io/health-check]"},
		{"health-check-interval: 200ms", "health-check-interval: 0s", "lbproxy.io/health-check-interval]"},
		{"health-check-port: '8081'", "health-check-port: '81081'", "lbproxy.io/health-check-port]"},
		{"health-check-path: /ready", "health-check-path: ready", "lbproxy.io/health-check-path]"},
		{"health-check-fall: '2'", "health-check-fall: '-1'", "lbproxy.io/health-check-fall]"},
		{"health-check: http", "health-check: exec, lbproxy.io/health-check-script: ../sh", "lbproxy.io/health-check-script]"},
	} {
		if !strings.Contains(good, tc.good) {
			t.Fatalf("the manifest does not say %s", tc.good)
		}
		r.put("web.yaml", strings.Replace(good, tc.good, tc.bad, 1))
		a.awaitLog("level=WARN", "shop/web", tc.field)
		t.Logf("%s: %s", tc.bad, a.log.line("level=WARN", "shop/web", tc.field))
		tr.flows()
		r.only(webVIP, "backend2", "backend3") // as it was probed before
		r.put("web.yaml", good)
	}
	status(http.StatusOK)
	a.awaitLog("reason=BackendRestored", r.backend("backend1"))
	r.settles(webVIP, "backend1", "backend2", "backend3")
	tr.stop()
}

// A script that this node does not have is refused, and takes nobody out.
func TestRefusedScript(t *testing.T) {
	r := newRig(t)
	r.put("web.yaml", says(r.manifest("web", webVIP, "backend1", "backend2"),
		"lbproxy.io/health-check: exec, lbproxy.io/health-check-script: check-web, "+often))
	a := r.run()
	tr := r.traffic(webVIP)
	a.awaitLog("reason=ProbeRefused", "check-web")
	t.Log(a.log.line("reason=ProbeRefused"))
	tr.flows()
	r.only(webVIP, "backend1", "backend2")
	if line := a.log.line("reason=BackendEjected"); line != "" {
		t.Error(line)
	}
	tr.stop()
}
