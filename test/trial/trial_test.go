// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lbproxy/lbproxy/internal/lab"
)

func TestEdits(t *testing.T) {
	r := newRig(t)
	r.put("web.yaml", r.manifest("web", webVIP, "backend1", "backend2"))
	a := r.run()
	r.serves(webVIP, "backend1", "backend2")

	t.Log("a backend is replaced, by a rename")
	r.put("web.yaml", r.manifest("web", webVIP, "remote1"))
	r.follows(webVIP, "remote1")
	t.Log("and by a write in place")
	r.overwrite("web.yaml", r.manifest("web", webVIP, "backend3"))
	r.follows(webVIP, "backend3")

	t.Log("the slice moves to a file of its own, and is deleted")
	r.put("web-slices.yaml", r.slice("web", "backend1"))
	r.put("web.yaml", r.service("web", webVIP))
	r.follows(webVIP, "backend1")
	r.remove("web-slices.yaml")
	r.refuses(webVIP)
	r.put("web-slices.yaml", r.slice("web", "backend2"))
	r.follows(webVIP, "backend2")

	t.Log("the Service is deleted")
	r.remove("web.yaml")
	for _, from := range clients {
		eventually(t, from+" is not answered any more", func() bool { return r.dial(from, webVIP, silence).Kind != lab.OK })
	}
	r.gone(webVIP)
	if !a.alive() {
		t.Error("lbproxy ended")
	}
}

func TestMalformedManifests(t *testing.T) {
	r := newRig(t)
	good := r.manifest("web", webVIP, "backend1", "backend2")
	r.put("web.yaml", good)
	a := r.run()
	tr := r.traffic(webVIP)
	for _, tc := range []struct {
		name, text string
		says       []string // in one line of the log
	}{
		{"no YAML", "apiVersion: v1\nkind: [Service\n", []string{"web.yaml", "document 1", "yaml: line "}},
		{"empty", "", []string{"web.yaml", "is empty"}},
		{"wrong type", strings.Replace(good, "port: 80,", "port: eighty,", 1),
			[]string{"web.yaml", "document 1, Service shop/web", "ports.port"}},
		{"unknown field", strings.Replace(good, "  clusterIP:", "  colour: red\n  clusterIP:", 1),
			[]string{"web.yaml", "document 1, Service shop/web", "spec.colour"}},
		{"unknown algorithm", strings.Replace(good, "round-robin", "fastest", 1), []string{"shop/web", "algorithm", "fastest"}},
		{"bad address beside a good one", strings.Replace(good, "10.244.1.11", "10.244.1.311", 1),
			[]string{"shop/web", "EndpointSlice web-1: endpoints[0].addresses[0]", "10.244.1.311"}},
	} {
		r.put("web.yaml", tc.text)
		a.awaitLog(append([]string{"level=WARN"}, tc.says...)...)
		t.Logf("%s: %s", tc.name, a.log.line(append([]string{"level=WARN"}, tc.says...)...))
		tr.flows()
		r.put("web.yaml", good)
		tr.flows()
	}
	tr.stop()
	r.follows(webVIP, "backend1", "backend2")
	r.put("web.yaml", r.manifest("web", webVIP, "backend3"))
	r.follows(webVIP, "backend3")
}

// Values that an API server would refuse leave the Service as it was; an address
// that another Service has costs the one that asks for it. Nobody else notices.
func TestImpossibleValues(t *testing.T) {
	r := newRig(t)
	good := r.manifest("web", webVIP, "backend1", "backend2")
	r.put("web.yaml", good)
	r.put("next.yaml", r.manifest("next", nextVIP, "backend3"))
	a := r.run()
	tr := r.traffic(nextVIP)
	for _, tc := range []struct {
		name, text string
		keeps      bool // what worked goes on
		says       []string
	}{
		{"port", strings.Replace(good, "port: 80,", "port: 99999,", 1), true, []string{"shop/web", "spec.ports[0].port", "99999"}},
		{"no address", strings.Replace(good, "clusterIP:", "clusterIp:", 1), true, []string{"shop/web", "spec.clusterIP", "is empty"}},
		{"another's address", strings.Replace(good, webVIP.ip(), nextVIP.ip(), 1), false, []string{nextVIP.ip(), "is served by Service shop/"}},
	} {
		r.put("web.yaml", tc.text)
		a.awaitLog(append([]string{"level=WARN"}, tc.says...)...)
		t.Logf("%s: %s", tc.name, a.log.line(append([]string{"level=WARN"}, tc.says...)...))
		tr.flows()
		if tc.keeps {
			r.follows(webVIP, "backend1", "backend2")
		}
		r.put("web.yaml", good)
		r.follows(webVIP, "backend1", "backend2")
	}
	tr.stop()
}

func TestDirectoryGoesAwayAndComesBack(t *testing.T) {
	r := newRig(t)
	r.put("web.yaml", r.manifest("web", webVIP, "backend1"))
	a := r.run()
	tr := r.traffic(webVIP)
	away := r.dir + "-away"
	if err := os.Rename(r.dir, away); err != nil {
		t.Fatal(err)
	}
	a.awaitLog("level=WARN", r.dir, "everything stays as it was")
	tr.flows()
	if err := os.Rename(away, r.dir); err != nil {
		t.Fatal(err)
	}
	r.put("web.yaml", r.manifest("web", webVIP, "backend2"))
	r.follows(webVIP, "backend2")
	tr.stop()
}

func TestKilledUnderTraffic(t *testing.T) {
	r := newRig(t)
	r.put("web.yaml", r.manifest("web", webVIP, "backend1", "backend2"))
	a := r.run()
	tr := r.traffic(webVIP)
	for range 3 {
		if code := a.end(syscall.SIGKILL); code != -1 {
			t.Errorf("exit code %d, want -1: killed", code)
		}
		tr.flows()
		r.lbproxy("get", "services").want(t, 0, "web", webVIP.ip())
		a = r.run()
		tr.flows()
	}
	tr.stop()
	r.put("web.yaml", r.manifest("web", webVIP, "backend3"))
	r.follows(webVIP, "backend3")
}

func TestTwoAtOnce(t *testing.T) {
	r := newRig(t)
	r.put("web.yaml", r.manifest("web", webVIP, "backend1", "backend2"))
	a := r.run()
	tr := r.traffic(webVIP)
	other := filepath.Join(r.lab.CgroupRoot(), "other")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		flags []string
		lock  string
	}{
		{"the same place", nil, r.lab.CgroupRoot()},
		{"the same pins", []string{"--cgroup-root=" + other}, filepath.Join(r.lab.BPFFS(), "lbproxy")},
	} {
		res := r.lbproxy(r.runArgs(tc.flags...)...)
		res.want(t, 1, "another lbproxy is running", "it holds the lock on "+tc.lock)
		res.wantOneLine(t)
		t.Logf("%s: %s", tc.name, res.stderr)
	}
	res := r.lbproxy("cleanup")
	res.want(t, 1, "another lbproxy is running", "stop it first")
	res.wantOneLine(t)
	r.lbproxy("check", "--manifests="+r.dir).want(t, 0, "may be running") // its ports are taken, no more
	if !a.alive() {
		t.Fatal("the first lbproxy ended")
	}
	tr.flows()
	tr.stop()
	r.put("web.yaml", r.manifest("web", webVIP, "backend3"))
	r.follows(webVIP, "backend3")
}

func TestStopAndCleanup(t *testing.T) {
	r := newRig(t)
	r.lbproxy("cleanup").want(t, 0, "nothing to remove")
	r.put("web.yaml", r.manifest("web", webVIP, "backend1", "backend2"))
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		a := r.run()
		tr := r.traffic(webVIP)
		if code := a.end(sig); code != 0 {
			t.Errorf("%s: exit code %d", sig, code)
		}
		if a.log.line("stopped; the rules stay", "lbproxy cleanup") == "" {
			t.Errorf("%s: the log does not say that the rules stay:\n%s", sig, a.log.String())
		}
		tr.flows()
		tr.stop()
	}
	r.serves(webVIP, "backend1", "backend2")

	var version struct{ MapLayout string }
	if err := json.Unmarshal([]byte(r.lbproxy("version", "-o", "json").stdout), &version); err != nil {
		t.Fatal(err)
	}
	pins := r.lab.BPFFS() + "/lbproxy/" + version.MapLayout
	r.lbproxy("cleanup").want(t, 0, "removed "+pins+"/links/", "removed "+pins+"/maps/frontends")
	r.nothingLeft()
	r.gone(webVIP)
	r.lbproxy("cleanup").want(t, 0, "nothing to remove")
	for _, args := range []string{"get services", "get backends", "get connections", "explain --from 10.244.1.2 --to " + string(webVIP)} {
		res := r.lbproxy(strings.Fields(args)...)
		res.want(t, 1, "lbproxy has no state here: it has not run, or cleanup removed it")
		res.wantOneLine(t)
	}
	r.run()
	r.serves(webVIP, "backend1", "backend2")
}

func TestPortsInUse(t *testing.T) {
	r := newRig(t)
	r.put("web.yaml", r.manifest("web", webVIP, "backend1"))
	var other net.Listener
	err := r.lab.Host(lab.Node).Do(func() (err error) {
		var lc net.ListenConfig
		other, err = lc.Listen(t.Context(), "tcp", "0.0.0.0:10256")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	res := r.lbproxy(r.runArgs("--bind-address-hard-fail")...)
	res.want(t, 1, "health server", "0.0.0.0:10256", "address already in use")

	a := r.start()
	a.awaitLog("level=WARN", "cannot bind; trying again", "server=health", "0.0.0.0:10256", "address already in use")
	r.follows(webVIP, "backend1")
	eventually(t, "metrics are served", func() bool { return r.metric("lbproxy_synced") == "1" })
	other.Close()
	a.awaitReady() // within the time of one retry
	r.serves(webVIP, "backend1")
}
