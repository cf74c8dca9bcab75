// SPDX-License-Identifier: Apache-2.0

//go:build root

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// manifest returns the DaemonSet of deploy/daemonset.yaml and its configuration file.
func manifest(t *testing.T) (ds appsv1.DaemonSet, configuration string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var cm corev1.ConfigMap
	for docs := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
		var raw json.RawMessage
		if err := docs.Decode(&raw); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		for kind, into := range map[string]any{`"kind":"DaemonSet"`: &ds, `"kind":"ConfigMap"`: &cm} {
			if bytes.Contains(raw, []byte(kind)) {
				if err := json.Unmarshal(raw, into); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if ds.Name == "" || cm.Data["config.yaml"] == "" {
		t.Fatalf("deploy/daemonset.yaml: DaemonSet %q, configuration %q", ds.Name, cm.Data["config.yaml"])
	}
	return ds, cm.Data["config.yaml"]
}

// pod is what a kubelet would know: where volumes are on the node, and what is in the
// environment besides what the manifest says.
type pod struct {
	ds      appsv1.DaemonSet
	rootfs  string
	volumes map[string]string // host directories and files by the volumes' names
	more    []specs.Mount
	env     []string
	without string // a capability that is taken away
}

// spec is what a kubelet and containerd would make of a container of the DaemonSet.
func (p *pod) spec(t *testing.T, c corev1.Container) *specs.Spec {
	t.Helper()
	tmpl := p.ds.Spec.Template.Spec
	args := append([]string{"/" + programPath}, c.Args...)
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, e := range c.Env {
		switch {
		case e.ValueFrom.FieldRef != nil && e.ValueFrom.FieldRef.FieldPath == "spec.nodeName":
			env = append(env, e.Name+"="+lab.Node)
		case e.ValueFrom.ConfigMapKeyRef == nil || !*e.ValueFrom.ConfigMapKeyRef.Optional:
			t.Fatalf("variable %s: the test does not know it", e.Name)
		}
	}
	s := &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: p.rootfs, Readonly: *c.SecurityContext.ReadOnlyRootFilesystem},
		Process: &specs.Process{Args: args, Cwd: "/", Env: append(env, p.env...)},
		Linux: &specs.Linux{
			CgroupsPath:       fmt.Sprintf("/lbplab-image-%d", os.Getpid()),
			RootfsPropagation: "rslave",
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
			}, // hostNetwork: whoever starts it is in the node's; hostPID
		},
	}
	if !tmpl.HostNetwork || !tmpl.HostPID {
		t.Fatalf("the pod has not the node's network or process ids: %+v", tmpl)
	}
	s.Mounts = p.mounts(t, s, c)
	if sec := c.SecurityContext; sec.Privileged != nil && *sec.Privileged {
		s.Process.Capabilities = capabilities(everyCapability(t))
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs"})
		slices.SortStableFunc(s.Mounts, func(a, b specs.Mount) int { return strings.Compare(a.Destination, b.Destination) })
		return s
	}
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}})
	slices.SortStableFunc(s.Mounts, func(a, b specs.Mount) int { return strings.Compare(a.Destination, b.Destination) })
	p.confine(t, s, c.SecurityContext)
	return s
}

// confine applies a security context that is not privileged.
func (p *pod) confine(t *testing.T, s *specs.Spec, sec *corev1.SecurityContext) {
	t.Helper()
	var caps []string
	for _, c := range sec.Capabilities.Add {
		if string(c) != p.without {
			caps = append(caps, "CAP_"+string(c))
		}
	}
	s.Process.Capabilities = capabilities(caps)
	s.Process.NoNewPrivileges = !*sec.AllowPrivilegeEscalation
	// As containerd has them.
	s.Linux.MaskedPaths = []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"}
	s.Linux.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	if p.ds.Spec.Template.Spec.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Fatal("the seccomp profile is not the runtime's")
	}
	profile, err := seccomp.GetDefaultProfile(s)
	if err != nil {
		t.Fatal(err)
	}
	s.Linux.Seccomp = profile
}

func capabilities(names []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names}
}

// everyCapability returns those that this process has: nobody can give more.
func everyCapability(t *testing.T) []string {
	t.Helper()
	return []string{"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON", "CAP_NET_RAW", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"}
}

// mounts are those of every container, and the volumes.
func (p *pod) mounts(t *testing.T, s *specs.Spec, c corev1.Container) []specs.Mount {
	t.Helper()
	ms := append([]specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
	}, p.more...)
	for _, m := range c.VolumeMounts {
		host, known := p.volumes[m.Name]
		if !known {
			t.Fatalf("volume %s: the test does not know it", m.Name)
		}
		options := []string{"rbind", "rprivate", "rw"}
		if m.MountPropagation != nil {
			options[1] = map[corev1.MountPropagationMode]string{
				corev1.MountPropagationHostToContainer: "rslave", corev1.MountPropagationBidirectional: "rshared",
			}[*m.MountPropagation]
		}
		if options[1] == "rshared" {
			s.Linux.RootfsPropagation = "rshared"
		}
		if m.ReadOnly {
			options[2] = "ro"
		}
		ms = append(ms, specs.Mount{Destination: m.MountPath, Type: "bind", Source: host, Options: options})
	}
	return ms
}

// output is what a container has said, which grows.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write adds to it.
func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// running is a container that has been started.
type running struct {
	log   output
	cmd   *exec.Cmd
	ended chan struct{}
	runc  []string // what begins a command that is about it
	id    string
}

// exec runs a command in the container, as kubectl exec does.
func (r *running) exec(args ...string) (string, error) {
	args = slices.Concat(r.runc[1:], []string{"exec", r.id}, args)
	out, err := exec.Command(r.runc[0], args...).CombinedOutput()
	return string(out), err
}

// start runs a container on the lab's node with runc.
func start(t *testing.T, l *lab.Lab, s *specs.Spec) *running {
	t.Helper()
	bundle := t.TempDir()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	state, id := filepath.Join(bundle, "state"), fmt.Sprintf("lbplab-%d-%s", os.Getpid(), filepath.Base(bundle))
	r := &running{ended: make(chan struct{}), runc: []string{"runc", "--root", state}, id: id}
	r.cmd = exec.CommandContext(t.Context(), "runc", "--root", state, "run", "--bundle", bundle, id)
	r.cmd.Stdout, r.cmd.Stderr = &r.log, &r.log
	r.cmd.Cancel = func() error { return r.cmd.Process.Signal(syscall.SIGTERM) }
	if err := l.Host(lab.Node).Start(r.cmd); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = r.cmd.Wait() // its state tells
		close(r.ended)
	}()
	t.Cleanup(func() {
		out, err := exec.Command("runc", "--root", state, "delete", "--force", id).CombinedOutput()
		<-r.ended
		if err != nil {
			t.Errorf("runc delete: %v: %s", err, out)
		}
		if t.Failed() {
			t.Logf("the container said:\n%s", r.log.String())
		}
	})
	return r
}
