// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// everyKind has a Service of each kind that kube-proxy makes other rules for.
const everyKind = `apiVersion: v1
kind: Service
metadata: {name: plain, namespace: shop}
spec: {clusterIP: 10.96.3.1, ports: [{name: http, port: 80, targetPort: 8080}, {name: dns, protocol: UDP, port: 53, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: local, namespace: shop}
spec:
  type: LoadBalancer
  clusterIP: 10.96.3.2
  externalTrafficPolicy: Local
  healthCheckNodePort: 32000
  externalIPs: [172.32.1.2]
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30082}]
status: {loadBalancer: {ingress: [{ip: 172.32.0.2, ipMode: VIP}]}}
---
apiVersion: v1
kind: Service
metadata: {name: away, namespace: shop}
spec:
  type: NodePort
  clusterIP: 10.96.3.3
  externalTrafficPolicy: Local
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30083}]
---
apiVersion: v1
kind: Service
metadata: {name: ranged, namespace: shop}
spec:
  type: LoadBalancer
  clusterIP: 10.96.3.4
  loadBalancerSourceRanges: [192.0.2.0/24, 198.51.100.0/24]
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}
  ports: [{port: 80, targetPort: 8080, nodePort: 30084}]
status: {loadBalancer: {ingress: [{ip: 172.32.0.4, ipMode: VIP}]}}
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec: {clusterIP: 10.96.3.5, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: six, namespace: shop}
spec: {clusterIP: "fd00:10:96::36", ipFamilies: [IPv6], ports: [{name: http, port: 80, targetPort: 8080}]}
`

// everySlice adds the endpoints.
func (r *rig) everySlice() string {
	text := everyKind
	for name, pods := range map[string][]string{
		"local": {"backend1", "backend2", "remote1"}, "away": {"remote1"}, "ranged": {"backend1", "backend2"},
	} {
		slice := r.slice(name, pods...)
		if name == "ranged" {
			slice = strings.ReplaceAll(slice, "name: http, ", "")
		}
		text += "---\n" + slice
	}
	return text + "---\n" + strings.Replace(r.slice("plain", "backend1", "backend2", "backend3"), "ports: [", "ports: [{name: dns, protocol: UDP, port: 8080}, ", 1) +
		"---\n" + `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: six-1, namespace: shop, labels: {kubernetes.io/service-name: six}}
addressType: IPv6
ports: [{name: http, port: 8080}]
endpoints: [{addresses: ["` + r.lab.Host("backend1").Addr6.String() + `"], nodeName: node}]
`
}

// differs is a difference that --check printed.
type differs struct{ Level, Frontend, Service, Caller, What, KubeProxy, Lbproxy string }

// TestMigrateCheck compares with a real kube-proxy: nothing differs but what is meant to,
// until a Service is changed that kube-proxy is not told of.
func TestMigrateCheck(t *testing.T) {
	for _, m := range kubeModes {
		t.Run(m.mode+" of "+m.backend, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.put("web.yaml", r.switchedManifest())
			r.put("every.yaml", r.everySlice())
			c := r.newCluster(m.backend)
			c.kubeProxy(m.mode)
			r.dump(m.mode, m.backend)
			check := func() (all struct{ Differences []differs }, res result) {
				args := append([]string{"migrate"}, r.runArgs("--dataplane="+m.dataplane, "--check", "-o=json")[1:]...)
				res = r.lbproxy(args...)
				if err := json.Unmarshal([]byte(res.stdout), &all); err != nil {
					t.Fatalf("%v: %s", err, res.stderr)
				}
				return all, res
			}
			same, res := check()
			res.want(t, 0)
			for _, d := range same.Differences {
				t.Errorf("differs: %+v", d)
			}

			t.Log("kube-proxy is not told of changes")
			r.put("every.yaml", strings.NewReplacer("10.96.3.1,", "10.96.3.9,", "timeoutSeconds: 600", "timeoutSeconds: 60").Replace(r.everySlice()))
			now, res := check()
			res.want(t, 1, "2 of ", "frontends would not be served as with kube-proxy")
			want := map[differs]bool{
				{"fail", "10.96.3.1:80/TCP", "shop/plain:http", "", "frontend", "served", "not served"}:   true,
				{"fail", "10.96.3.1:53/UDP", "shop/plain:dns", "", "frontend", "served", "not served"}:    true,
				{"warn", "10.96.3.9:80/TCP", "shop/plain:http", "", "frontend", "not served", "served"}:   true,
				{"warn", "10.96.3.9:53/UDP", "shop/plain:dns", "", "frontend", "not served", "served"}:    true,
				{"warn", "10.96.3.4:80/TCP", "shop/ranged", "outside, pod", "affinity", "600 s", "60 s"}:  true,
				{"warn", "172.32.0.4:80/TCP", "shop/ranged", "outside", "affinity", "600 s", "60 s"}:      true,
				{"warn", "0.0.0.0:30084/TCP", "shop/ranged", "outside, pod", "affinity", "600 s", "60 s"}: true,
			}
			for _, d := range now.Differences {
				if !want[d] {
					t.Errorf("differs: %+v", d)
				}
				delete(want, d)
			}
			for d := range want {
				t.Errorf("is not told: %+v", d)
			}

			back := append([]string{"migrate"}, r.runArgs("--dataplane="+m.dataplane, "--rollback")[1:]...)
			r.lbproxy(back...).want(t, 1, "kube-proxy has no rules for 2 frontends")
			t.Log("its rules are of another time: chains are there, with other endpoints")
			r.put("every.yaml", strings.ReplaceAll(r.everySlice(), r.lab.Host("backend3").Addr4.String(), "10.244.1.77"))
			r.lbproxy(back...).want(t, 1, "kube-proxy's rules are not of now", "2 Services: shop/plain")
		})
	}
}

// dump writes kube-proxy's rules to the directory that LBPROXY_TRIAL_DUMP names, from
// where testdata of internal/migrate is.
func (r *rig) dump(mode, backend string) {
	r.t.Helper()
	dir := os.Getenv("LBPROXY_TRIAL_DUMP")
	if dir == "" {
		return
	}
	commands := map[string][]string{"iptables.txt": {"iptables-" + backend + "-save"}, "ip6tables.txt": {"ip6tables-" + backend + "-save"}}
	if mode == "nftables" {
		commands = map[string][]string{
			"nft.json":  {"nft", "-j", "-n", "list", "table", "ip", "kube-proxy"},
			"nft6.json": {"nft", "-j", "-n", "list", "table", "ip6", "kube-proxy"},
		}
	}
	for name, command := range commands {
		res := r.finish(r.lab.Host(lab.Node).Command(r.bounded(), command[0], command[1:]...))
		if err := os.WriteFile(filepath.Join(dir, backend+"-"+name), []byte(res.stdout), 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
}
