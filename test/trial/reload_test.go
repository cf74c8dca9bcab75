// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// mounted is a directory in which the configuration is as the kubelet mounts a ConfigMap:
// the file is a link through ..data to a directory that is replaced as a whole.
type mounted struct {
	r       *rig
	dir     string
	version int
}

func (r *rig) mount(text string) *mounted {
	r.t.Helper()
	m := &mounted{r: r, dir: filepath.Join(r.home, "config")}
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		r.t.Fatal(err)
	}
	m.put(text)
	if err := os.Symlink("..data/config.yaml", m.path()); err != nil {
		r.t.Fatal(err)
	}
	return m
}

func (m *mounted) path() string { return filepath.Join(m.dir, "config.yaml") }

// put replaces what is mounted.
func (m *mounted) put(text string) {
	m.r.t.Helper()
	m.version++
	name := fmt.Sprintf("..%d", m.version)
	tmp := filepath.Join(m.dir, "..data_tmp")
	for _, err := range []error{
		os.Mkdir(filepath.Join(m.dir, name), 0o755),
		os.WriteFile(filepath.Join(m.dir, name, "config.yaml"), []byte(text), 0o600),
		os.Symlink(name, tmp),
		os.Rename(tmp, filepath.Join(m.dir, "..data")),
		os.RemoveAll(filepath.Join(m.dir, fmt.Sprintf("..%d", m.version-1))),
	} {
		if err != nil {
			m.r.t.Fatal(err)
		}
	}
}

// inForce is what lbproxy get config says.
type inForce struct {
	Fields   map[string]any
	Hash     string
	Waiting  []struct{ Field string }
	Rejected string
}

func (r *rig) inForce() (c inForce) {
	r.t.Helper()
	res := r.lbproxy("get", "config", "-o", "json")
	if err := json.Unmarshal([]byte(res.stdout), &c); err != nil {
		r.t.Fatalf("get config: %v in %q, %q", err, res.stdout, res.stderr)
	}
	return c
}

// reloads puts a file and waits until it has been read.
func (m *mounted) reloads(text string) {
	m.r.t.Helper()
	before := m.r.inForce()
	m.put(text)
	eventually(m.r.t, "the configuration is read again: "+text, func() bool {
		now := m.r.inForce()
		return now.Hash != before.Hash || now.Rejected != before.Rejected
	})
}

const fileHead = "apiVersion: lbproxy.io/v1alpha1\nkind: ProxyConfiguration\nclusterCIDR: %s,%s\n"

// TestReloadUnderLoad changes the configuration while connections are made and kept all
// the time: none fails, and what the file says is in force.
func TestReloadUnderLoad(t *testing.T) {
	eachDataplane(t, func(t *testing.T, flags []string) {
		r := newRig(t)
		for _, name := range []string{"backend1", "backend2", "remote1"} {
			if err := r.lab.Host(name).Serve(t.Context(), lab.Quiet, lab.AnyAddr(quietPort)); err != nil {
				t.Fatal(err)
			}
		}
		r.put("web.yaml", strings.ReplaceAll(r.switchedManifest(), ", annotations: {lbproxy.io/algorithm: round-robin}", ""))
		head := fmt.Sprintf(fileHead, lab.ClusterPods4, lab.ClusterPods6)
		m := r.mount(head + "algorithm: round-robin")
		a := r.startLbproxy(append([]string{"run", "--config=" + m.path(), "--manifests=" + r.dir, "--node-name=" + lab.Node}, flags...)...)
		a.awaitReady()
		r.lbproxy("get", "services").want(t, 0, "round-robin")
		l := r.startLoad()
		kept := r.old("any configuration")

		m.reloads(head + "algorithm: least-connection\nslowStart: 1s\nhealthCheck: tcp\nhealthCheckInterval: 1s\nauditPeriod: 5s\nlogLevel: debug")
		eventually(t, "the algorithm is in force", func() bool {
			out := r.lbproxy("get", "services").stdout
			return strings.Contains(out, "least-connection") && !strings.Contains(out, "round-robin")
		})
		l.flows()
		m.reloads(head + "algorithm: hash\nmasqueradeAll: true\nallowExternalIPs: false\nnodeWeights: false\nmetricsDetail: backend")
		l.flows()
		m.reloads(head + "algorithm: fastest")
		if now := r.inForce(); !strings.Contains(now.Rejected, `unknown algorithm "fastest"`) || now.Fields["algorithm"] != "hash" {
			t.Errorf("in force is %+v, want what was read before", now)
		}
		a.awaitLog("configuration rejected", "fastest")
		l.flows()
		m.reloads(head + "algorithm: random\nbpffs: /elsewhere\nclusterCIDR: []")
		if now := r.inForce(); now.Rejected == "" {
			t.Errorf("in force is %+v, want the field that is there twice to be told", now)
		}
		m.reloads(head + "algorithm: random\nmaxSlots: 12345\nprofiling: true\nnodePortAddresses: all")
		if now := r.inForce(); now.Rejected != "" || len(now.Waiting) != 1 || now.Waiting[0].Field != "maxSlots" || now.Fields["algorithm"] != "random" {
			t.Errorf("in force is %+v, want all but maxSlots", now)
		}
		l.flows()
		l.stop()
		kept.end()
		for sample, want := range map[string]string{
			`lbproxy_config_reloads_total{result="applied"}`: "3", `lbproxy_config_reloads_total{result="rejected"}`: "2",
			"lbproxy_config_restart_needed": "1", "lbproxy_config_rejected": "0",
		} {
			if got := r.metric(sample); got != want {
				t.Errorf("%s is %q, want %s", sample, got, want)
			}
		}
		reloadAddresses(r, m, a)
		if code := a.end(syscall.SIGTERM); code != 0 {
			t.Errorf("lbproxy run ended with %d", code)
		}
		r.lbproxy("cleanup").want(t, 0, "removed")
	})
}

// reloadAddresses changes which addresses count, which is seen by whom they serve.
func reloadAddresses(r *rig, m *mounted, a *agent) {
	t := r.t
	t.Helper()
	node := lab.Request{Proto: lab.TCP, To: targets(80, nodePort)[2].at, Timeout: silence}
	answers := func() bool { return r.lab.Host(lab.Outside).Dial(t.Context(), node).Kind == lab.OK }
	head := fmt.Sprintf(fileHead, lab.ClusterPods4, lab.ClusterPods6)
	m.reloads(head + "nodePortAddresses: 198.51.100.0/24")
	eventually(t, "the NodePort is served nowhere", func() bool { return !answers() })
	m.reloads(head + "nodePortAddresses: " + lab.NodeAddr4.String() + "/32")
	eventually(t, "the NodePort is served at the node's address", answers)

	masqueraded := func() bool {
		res := r.dial("client2", webVIP, soon)
		return res.Kind == lab.OK && res.Backend == "remote1" && res.Seen.Addr() == lab.NodeAddr4
	}
	direct := func() bool {
		res := r.dial("client2", webVIP, soon)
		return res.Kind == lab.OK && res.Backend == "remote1" && res.Seen.Addr() == r.lab.Host("client2").Addr4
	}
	eventually(t, "a pod is known by its address", direct)
	m.reloads(fmt.Sprintf(fileHead, "198.51.100.0/24", lab.ClusterPods6))
	eventually(t, "it is no pod any more", masqueraded)
	m.put(head)
	if err := a.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is a pod again, after SIGHUP", direct)
}
