//go:build root

package ebpf

import (
	"net/netip"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

func TestSmoke(t *testing.T) {
	r := newRig(t, nil)
	type vip struct {
		f lb.Family
		p lb.Proto
		s string
	}
	var d dataplane.Delta
	for _, p := range []lb.Proto{lb.TCP, lb.UDP} {
		d.Put = append(d.Put,
			r.svc("web", lb.IPv4, p, "round-robin", r.pods(lb.IPv4, "backend1", "backend2", "backend3"),
				frontend(lb.ClusterIP, p, "10.96.0.1:80", lb.MasqueradeOffCluster),
				frontend(lb.NodePort, p, "0.0.0.0:30080", lb.MasqueradeAlways),
				frontend(lb.LoadBalancer, p, "172.32.0.1:80", lb.MasqueradeAlways)),
			r.svc("web", lb.IPv6, p, "round-robin", r.pods(lb.IPv6, "backend1", "backend2", "backend3"),
				frontend(lb.ClusterIP, p, "[fd00:10:96::1]:80", lb.MasqueradeOffCluster),
				frontend(lb.NodePort, p, "[::]:30080", lb.MasqueradeAlways),
				frontend(lb.LoadBalancer, p, "[fd00:32::1]:80", lb.MasqueradeAlways)),
			r.svc("remote", lb.IPv4, p, "random", r.pods(lb.IPv4, "remote1"),
				frontend(lb.ClusterIP, p, "10.96.0.2:80", lb.MasqueradeOffCluster)),
			r.svc("hair", lb.IPv4, p, "random", r.pods(lb.IPv4, "backend1"),
				frontend(lb.ClusterIP, p, "10.96.0.4:80", lb.MasqueradeOffCluster)),
			r.svc("none", lb.IPv4, p, "random", nil,
				frontend(lb.ClusterIP, p, "10.96.0.3:80", lb.MasqueradeOffCluster)),
			r.svc("none", lb.IPv6, p, "random", nil,
				frontend(lb.ClusterIP, p, "[fd00:10:96::3]:80", lb.MasqueradeOffCluster)))
	}
	d.Full = true
	r.sync(d)
	for _, to := range []string{"10.96.0.1:80", "[fd00:10:96::1]:80", "10.96.0.2:80", "10.96.0.3:80", "[fd00:10:96::3]:80", "172.30.0.11:30080", "172.30.1.11:30080", "[fd00:30::11]:30080", "172.32.0.1:80", "[fd00:32::1]:80", "127.0.0.1:30080", "[::1]:30080"} {
		for _, proto := range []string{lab.TCP, lab.UDP} {
			for _, from := range []string{"client1", "client2", lab.Node, lab.Outside} {
				for _, conn := range []bool{false, true} {
					if proto == lab.TCP && conn {
						continue
					}
					got, rs := r.dial(from, lab.Request{Proto: proto, To: netip.MustParseAddrPort(to), Connected: conn, Timeout: 300 * time.Millisecond}, 6)
					t.Logf("%-8s %s %-5v %-22s %v seen %v peer %v", from, proto, conn, to, got, rs[0].Seen, rs[0].Peer)
				}
			}
		}
	}
	st, err := r.dp.Stats()
	if err != nil {
		t.Fatal(err)
	}
	t.Log(st.Drops, st.Maps)
	for _, b := range st.Backends {
		t.Log(b)
	}
}
