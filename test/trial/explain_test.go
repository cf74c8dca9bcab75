// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"encoding/json"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
)

// What explain says is what happens.
func TestExplainIsRight(t *testing.T) {
	r := newRig(t)
	r.put("web.yaml", r.manifest("web", webVIP, "backend1", "remote1"))
	r.put("none.yaml", r.service("none", nextVIP))
	r.put("edge.yaml", edge+"---\n"+r.slice("edge", "remote1"))
	r.run()
	const nowhere vip = "10.96.7.7:80"
	for _, tc := range []struct {
		from           string
		to             vip
		decision, says string
		kind           lab.Kind
	}{
		{"client1", webVIP, "forward", "the next of 2 backends in turn, in the cluster pool", lab.OK},
		{"client2", webVIP, "forward", "the next of 2 backends in turn, in the cluster pool", lab.OK},
		{lab.Outside, webVIP, "forward", "the next of 2 backends in turn, in the cluster pool", lab.OK},
		{"client1", edgeVIP, "forward", "the only backend, in the cluster pool", lab.OK},
		{"client1", nextVIP, "reject", "the cluster pool has no backends", lab.Refused},
		{lab.Outside, nextVIP, "reject", "the cluster pool has no backends", lab.Refused},
		{lab.Outside, edgeVIP, "drop", "no backend on this node, and the traffic policy is Local", lab.Timeout},
		{"client1", nowhere, "pass", string(nowhere) + "/TCP is not a frontend: the packet goes on as it is", ""},
	} {
		t.Run(tc.decision+" from "+tc.from, func(t *testing.T) {
			from := r.lab.Host(tc.from).Addr4.String()
			res := r.lbproxy("explain", "--from", from, "--to", string(tc.to)+"/tcp")
			res.want(t, 0, "Decision:", tc.decision, tc.says, from, "Steps:")
			var e dataplane.Explanation
			if err := json.Unmarshal([]byte(r.lbproxy("explain", "--from", from, "--to", string(tc.to), "-o", "json").stdout), &e); err != nil {
				t.Fatal(err)
			}
			if e.Decision != tc.decision || e.Reason != tc.says || (len(e.Candidates) > 0) != (tc.decision == "forward") {
				t.Errorf("got %+v, want %s: %s", e, tc.decision, tc.says)
			}
			wait := 10 * time.Second
			if tc.kind == "" || tc.kind == lab.Timeout {
				wait = silence
			}
			got := r.dial(tc.from, tc.to, wait)
			if tc.kind != "" && got.Kind != tc.kind || tc.kind == "" && got.Kind == lab.OK {
				t.Errorf("%s dials %s: %s %s, want %q as explained", tc.from, tc.to, got.Kind, got.Err, tc.kind)
			}
		})
	}
}

const edge = `apiVersion: v1
kind: Service
metadata: {name: edge, namespace: shop}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  clusterIP: 10.96.1.9
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30090}]
status: {loadBalancer: {ingress: [{ip: 172.32.0.9}]}}
`

// Programs can read what people read.
func TestOutputForPrograms(t *testing.T) {
	r := newRig(t)
	r.put("web.yaml", r.manifest("web", webVIP, "backend1", "backend2"))
	r.run()
	conn, res := r.lab.Host("client2").Open(t.Context(), lab.Request{Proto: lab.TCP, To: webVIP.addr()})
	if res.Kind != lab.OK {
		t.Fatalf("open: %s %s", res.Kind, res.Err)
	}
	for what, fields := range map[string][]string{
		"services":    {"name", "kind", "frontends", "backends", "rejected"},
		"backends":    {"service", "address", "state", "pools", "opened", "closed", "live", "failed", "share"},
		"connections": {"service", "proto", "client", "frontend", "backend", "state", "idle"},
	} {
		out := r.lbproxy("get", what, "-o", "json")
		out.want(t, 0)
		var items []map[string]any
		if err := json.Unmarshal([]byte(out.stdout), &items); err != nil || len(items) == 0 {
			t.Fatalf("get %s -o json: %v\n%s", what, err, out.stdout)
		}
		for _, f := range fields {
			if _, ok := items[0][f]; !ok {
				t.Errorf("get %s -o json has no %s: %v", what, f, items[0])
			}
		}
		r.lbproxy("get", what, "-o", "yaml").want(t, 0, fields[0]+":")
		table := r.lbproxy("get", what)
		table.want(t, 0, "web")
		if lines := strings.Count(table.stdout, "\n"); lines != len(items)+1 {
			t.Errorf("get %s: %d lines, want %d and a header\n%s", what, lines, len(items), table.stdout)
		}
		r.lbproxy("get", what, "-n", "nothing", "-o", "json").want(t, 0, "[]")
	}
	if err := conn.Close(t.Context(), "fin"); err != nil {
		t.Error(err)
	}
}

// TestHealthIsAsked of the agent that runs, and of nobody after that.
func TestHealthIsAsked(t *testing.T) {
	r := newRig(t)
	r.put("web.yaml", r.manifest("web", webVIP, "backend1", "backend2"))
	a := r.run()
	r.lbproxy("get", "health", "-o", "json").want(t, 0, "")
	known := r.lbproxy("get", "backends")
	known.want(t, 0, "HEALTH")
	if known.stderr != "" {
		t.Errorf("beside an agent: stderr %q", known.stderr)
	}
	if code := a.end(syscall.SIGKILL); code != -1 {
		t.Errorf("exit code %d, want -1: killed", code)
	}
	asked := r.lbproxy("get", "health")
	asked.want(t, 1, "no agent answers at ")
	asked.wantOneLine(t)
	r.lbproxy("get", "backends").want(t, 0, "HEALTH", "health is not known: no agent answers at ")
	r.lbproxy("explain", "--from=10.244.1.2", "--to="+string(webVIP)).want(t, 0, "HEALTH", "health is not known: ")
	b := r.run() // in place of the socket that was left
	r.lbproxy("get", "health").want(t, 0, "")
	if code := b.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}
