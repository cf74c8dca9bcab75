// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
)

const failedServices = "lbproxy_services_failed"

// A full table costs the Service that does not fit, and only until there is room.
func TestFullTable(t *testing.T) {
	r := newRig(t)
	r.put("web.yaml", r.manifest("web", webVIP, "backend1"))
	r.put("big.yaml", r.manifest("big", bigVIP, "backend1", "backend2"))
	a := r.run("--max-backends=4") // entry 0 is never used: there is room for 3
	r.serves(bigVIP, "backend1", "backend2")
	tr := r.traffic(webVIP)

	r.put("next.yaml", r.manifest("next", nextVIP, "backend3"))
	a.awaitLog("level=WARN", "service not programmed", "shop/next", "map backends has 3 of 3 entries in use")
	r.wantFull("1", "web", "big")
	r.gone(nextVIP)

	t.Log("a Service that is served grows beyond the table: it keeps what it had")
	r.put("web.yaml", r.manifest("web", webVIP, "backend1", "backend2", "backend3"))
	a.awaitLog("level=WARN", "service not programmed", "shop/web", "map backends")
	r.wantFull("2", "web", "big")
	r.serves(webVIP, "backend1")
	r.serves(bigVIP, "backend1", "backend2")
	r.put("web.yaml", r.manifest("web", webVIP, "backend1"))
	eventually(t, "one Service is left over", func() bool { return r.metric(failedServices) == "1" })

	t.Log("there is room again")
	r.remove("big.yaml")
	within(t, 2*patience, "next is served", func() bool { return r.metric(failedServices) == "0" }) // a retry may wait 30 s
	r.follows(nextVIP, "backend3")
	tr.flows()
	tr.stop()
	r.wantServices("web", "next")
}

// wantFull checks that a full table is seen where one would look, and is no reason
// to call the agent ill.
func (r *rig) wantFull(failed string, served ...string) {
	r.t.Helper()
	eventually(r.t, failedServices+" is "+failed, func() bool { return r.metric(failedServices) == failed })
	used, room := r.metric(`lbproxy_map_entries{map="backends"}`), r.metric(`lbproxy_map_capacity{map="backends"}`)
	if used != "3" || room != "3" && room != "4" {
		r.t.Errorf("metrics: %q of %q backends, want 3 of 3, or of 4 with the entry that is never used", used, room)
	}
	if n := r.metric("lbproxy_sync_failures_total"); n == "" || n == "0" {
		r.t.Errorf("lbproxy_sync_failures_total %q, want more than 0", n)
	}
	if code, body, err := r.get(healthAddr, "/healthz"); err != nil || code != http.StatusOK {
		r.t.Errorf("healthz: %d %s %v, want 200", code, body, err)
	}
	r.wantServices(served...)
}

// wantServices checks which Services `get services` shows, as JSON and as a table.
func (r *rig) wantServices(names ...string) {
	r.t.Helper()
	var views []dataplane.ServiceView
	res := r.lbproxy("get", "services", "-o", "json")
	if err := json.Unmarshal([]byte(res.stdout), &views); err != nil || res.code != 0 {
		r.t.Fatalf("get services -o json: code %d, %v\n%s", res.code, err, res.stdout)
	}
	table := r.lbproxy("get", "services").stdout
	if len(views) != len(names) || strings.Count(table, "\n") != len(names)+1 {
		r.t.Errorf("get services: want %v\n%s\n%s", names, res.stdout, table)
	}
	for _, name := range names {
		if !strings.Contains(res.stdout, `"shop/`+name+`:http/TCP/IPv4"`) || !strings.Contains(table, name) {
			r.t.Errorf("get services lacks %s:\n%s\n%s", name, res.stdout, table)
		}
	}
}
