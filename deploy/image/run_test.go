// SPDX-License-Identifier: Apache-2.0

//go:build root

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/lbproxy/lbproxy/internal/lab"
)

const patience = 2 * time.Minute // the machine may be busy

// imageRoot is the image's file system, made once.
var imageRoot string

func TestMain(m *testing.M) {
	lab.Main()
	os.Exit(unpackAndRun(m))
}

// unpackAndRun builds lbproxy and the image's files, then runs the tests.
func unpackAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "lbproxy-image-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "lbproxy")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", program, "./cmd/lbproxy")
	build.Dir, build.Env = filepath.Join("..", ".."), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	imageRoot = filepath.Join(dir, "rootfs")
	args := []string{"-lock-file=debian.lock", "-cache=" + filepath.Join("..", "..", ".cache", "deb"), "-dir=" + imageRoot, "amd64=" + program}
	if err := run(args, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// node is a lab whose node runs the pod of the DaemonSet on a directory of manifests.
type node struct {
	*pod
	t   *testing.T
	lab *lab.Lab
}

func newNode(t *testing.T) *node {
	t.Helper()
	l, err := lab.New(lab.Options{Name: "image"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	ds, configuration := manifest(t)
	dir := l.Dir()
	for _, d := range []string{"config", "state", "manifests"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "config", "config.yaml"), configuration)
	write(t, filepath.Join(dir, "xtables.lock"), "")
	for _, name := range []string{"backend1", "backend2"} {
		for _, proto := range []string{lab.TCP, lab.UDP} {
			if err := l.Host(name).Serve(t.Context(), proto, lab.AnyAddr(8080)); err != nil {
				t.Fatal(err)
			}
		}
	}
	manifests := filepath.Join(dir, "manifests")
	return &node{t: t, lab: l, pod: &pod{
		ds: ds, rootfs: imageRoot,
		volumes: map[string]string{
			"config": filepath.Join(dir, "config"), "bpffs": l.BPFFS(), "cgroup": "/sys/fs/cgroup",
			"state": filepath.Join(dir, "state"), "xtables-lock": filepath.Join(dir, "xtables.lock"),
		},
		// In place of an API server.
		more: []specs.Mount{{Destination: "/etc/manifests", Type: "bind", Source: manifests, Options: []string{"rbind", "ro"}}},
		env: []string{
			"LBPROXY_MANIFESTS=/etc/manifests", "LBPROXY_CGROUP_ROOT=" + l.CgroupRoot(),
			"LBPROXY_CLUSTER_CIDR=" + lab.ClusterPods4.String() + "," + lab.ClusterPods6.String(),
		},
	}}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// serve writes a Service on TCP and UDP that has one backend.
func (n *node) serve(backend string) {
	n.t.Helper()
	text := fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.1.1
  ports: [{name: tcp, port: 80}, {name: udp, port: 80, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: tcp, port: 8080}, {name: udp, port: 8080, protocol: UDP}]
endpoints: [{addresses: [%s], nodeName: %s}]
`, n.lab.Host(backend).Addr4, lab.Node)
	tmp := filepath.Join(n.lab.Dir(), "edited")
	write(n.t, tmp, text)
	if err := os.Rename(tmp, filepath.Join(n.lab.Dir(), "manifests", "web.yaml")); err != nil {
		n.t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// answers waits until backend answers a pod by its sockets, one by its packets and a
// machine outside.
func (n *node) answers(backend string) {
	n.t.Helper()
	for _, from := range []string{"client1", "client2", lab.Outside} {
		eventually(n.t, backend+" answers "+from, func() bool {
			return n.lab.Host(from).Dial(n.t.Context(), request(lab.TCP)).Backend == backend
		})
	}
}

func request(proto string) lab.Request {
	return lab.Request{Proto: proto, To: netip.MustParseAddrPort("10.96.1.1:80"), Timeout: time.Second, Connected: proto == lab.UDP}
}

// ready tells whether the container's readiness probe succeeds.
func (n *node) ready(c corev1.Container) bool {
	var code int
	err := n.lab.Host(lab.Node).Do(func() error {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", c.Ports[0].ContainerPort), time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprintf(conn, "GET %s HTTP/1.0\r\n\r\n", c.ReadinessProbe.HTTPGet.Path)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		code = resp.StatusCode
		return resp.Body.Close()
	})
	return err == nil && code == http.StatusOK
}

// run starts lbproxy's container and waits for its readiness.
func (n *node) run() *running {
	n.t.Helper()
	n.prepare()
	c := n.ds.Spec.Template.Spec.Containers[0]
	r := start(n.t, n.lab, n.spec(n.t, c))
	eventually(n.t, "the container is ready", func() bool {
		select {
		case <-r.ended:
			n.t.Fatalf("the container ended: %s", r.log.String())
		default:
		}
		return n.ready(c)
	})
	return r
}

// prepare runs the init container to its end, and returns what it said.
func (n *node) prepare() string {
	n.t.Helper()
	r := start(n.t, n.lab, n.spec(n.t, n.ds.Spec.Template.Spec.InitContainers[0]))
	<-r.ended
	if code := r.cmd.ProcessState.ExitCode(); code != 0 || !strings.Contains(r.log.String(), "the node is prepared") {
		n.t.Fatalf("the init container ended with %d:\n%s", code, r.log.String())
	}
	return r.log.String()
}

// TestPrograms: the image's programs run, with what they load.
func TestPrograms(t *testing.T) {
	for _, tc := range []struct{ program, want string }{
		{"/usr/bin/lbproxy version", "lbproxy dev"},
		{"/usr/sbin/iptables -V", "(nf_tables)"}, {"/usr/sbin/ip6tables -V", "(nf_tables)"},
		{"/usr/sbin/iptables-legacy -V", "(legacy)"}, {"/usr/sbin/ip6tables-legacy -V", "(legacy)"},
		{"/usr/sbin/iptables-nft-save -V", "(nf_tables)"}, {"/usr/sbin/ip6tables-legacy-restore -V", "(legacy)"},
		{"/usr/sbin/nft -v", "nftables v1."}, {"/usr/sbin/nft -j -n list tables", `{"nftables": [`},
		{"/usr/sbin/iptables -m statistic -h", "statistic match options"}, {"/usr/sbin/iptables -j MASQUERADE -h", "MASQUERADE target options"},
	} {
		args := strings.Fields(tc.program)
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir, cmd.Env, cmd.SysProcAttr = "/", []string{}, &syscall.SysProcAttr{Chroot: imageRoot, Unshareflags: syscall.CLONE_NEWNET}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), tc.want) {
			t.Errorf("%s: %v, want %q in\n%s", tc.program, err, tc.want, out)
		}
	}
	if _, err := os.Lstat(filepath.Join(imageRoot, "usr/bin/sh")); err == nil {
		t.Error("the image has a shell")
	}
}

// nodeByVariable is what lbproxy says of the node's name.
var nodeByVariable = regexp.MustCompile(`(?m)^nodeName +` + lab.Node + ` +LBPROXY_NODE_NAME$`)

// TestDaemonSetServes runs lbproxy as the DaemonSet has it: on the image's read-only file
// system, with its volumes, capabilities and seccomp profile and nothing else, by runc.
func TestDaemonSetServes(t *testing.T) {
	for _, dataplane := range []string{"ebpf", "iptables/nft", "iptables/legacy"} {
		t.Run(dataplane, func(t *testing.T) {
			n := newNode(t)
			name, backend, _ := strings.Cut(dataplane, "/")
			n.env = append(n.env, "LBPROXY_DATAPLANE="+name)
			if backend != "" {
				n.env = append(n.env, "LBPROXY_IPTABLES_BACKEND="+backend)
			}
			n.serve("backend1")
			r := n.run()
			n.answers("backend1")
			conn, res := n.lab.Host("client1").Open(t.Context(), request(lab.UDP))
			if res.Kind != lab.OK {
				t.Fatalf("UDP: %s %s", res.Kind, res.Err)
			}
			n.serve("backend2")
			n.answers("backend2")
			eventually(t, "a socket in a pod leaves the endpoint that is gone", func() bool {
				got := conn.Exchange(t.Context(), []byte("again"), time.Second)
				return got.Backend == "backend2" || name == "ebpf" && got.Kind != lab.OK
			})
			if said, err := r.exec("/"+programPath, "get", "config", "--given"); err != nil || !nodeByVariable.MatchString(said) {
				t.Errorf("lbproxy get config in the container: %v, want the node's name by its variable in\n%s", err, said)
			}
			for _, level := range []string{"level=ERROR", "level=WARN"} {
				if strings.Contains(r.log.String(), level) {
					t.Errorf("the log has %s:\n%s", level, r.log.String())
				}
			}
		})
	}
}

// TestWithoutPtrace: what CAP_SYS_PTRACE is for. In a container, where the node's list of
// namespaces is not to be seen, those of pods are found by their processes only.
func TestWithoutPtrace(t *testing.T) {
	n := newNode(t)
	n.without = "SYS_PTRACE"
	n.env = append(n.env, "LBPROXY_DATAPLANE=ebpf")
	n.serve("backend1")
	r := n.run()
	conn, res := n.lab.Host("client1").Open(t.Context(), request(lab.UDP))
	if res.Kind != lab.OK {
		t.Fatalf("UDP: %s %s", res.Kind, res.Err)
	}
	n.serve("backend2")
	n.answers("backend2")
	eventually(t, "the log says that the socket stays", func() bool { return strings.Contains(r.log.String(), "sockets were not all closed") })
	if got := conn.Exchange(t.Context(), []byte("again"), time.Second); got.Kind != lab.OK {
		t.Errorf("the socket is closed: %s %s", got.Kind, got.Err)
	}
	if !strings.Contains(r.log.String(), "CAP_SYS_PTRACE") {
		t.Error("the log does not name what is missing")
	}
}

// TestInitMounts: the init container mounts a bpffs for the node, where lbproxy's own
// container finds it.
func TestInitMounts(t *testing.T) {
	n := newNode(t)
	dir := t.TempDir()
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH) // the bpffs, if it is there
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !isMounted(dir) {
			return
		}
	})
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	n.volumes["bpffs"] = dir
	for _, want := range []bool{true, false} { // the second time there is one
		if said := n.prepare(); strings.Contains(said, "mounted a bpffs") != want {
			t.Fatalf("mounts a bpffs: want %v\n%s", want, said)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || int64(st.Type) != unix.BPF_FS_MAGIC {
		t.Fatalf("%s on the node: type %x, %v; want a bpffs", dir, st.Type, err)
	}
	n.env = append(n.env, "LBPROXY_DATAPLANE=ebpf")
	n.serve("backend1")
	n.run()
	n.answers("backend1")
	if _, err := os.Stat(filepath.Join(dir, "lbproxy")); err != nil {
		t.Errorf("nothing is pinned on the node: %v", err)
	}
}

func isMounted(dir string) bool {
	text, err := os.ReadFile("/proc/self/mounts")
	return err == nil && strings.Contains(string(text), " "+dir+" ")
}
