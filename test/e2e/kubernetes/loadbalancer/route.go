// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/klog/v2"
)

// probe routes anew the addresses whose Services go by the health of nodes.
func (c *cloud) probe() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.balancers {
		if b.health != 0 {
			b.program()
		}
	}
}

// program brings the routes of b to its healthy nodes.
func (b *balancer) program() {
	for family, addr := range b.addrs {
		hops := slices.DeleteFunc(slices.Clone(b.nodes[family]), func(node string) bool {
			return b.health != 0 && !healthy(node, b.health)
		})
		if b.single && len(hops) > 1 {
			hops = hops[:1]
		}
		if was, ok := b.routes[addr]; ok && slices.Equal(was, hops) {
			continue
		}
		b.routes[addr] = hops
		klog.Infof("route %v: %v", addr, hops)
		route(addr, hops)
	}
}

var client = http.Client{
	Timeout:   time.Second,
	Transport: &http.Transport{DisableKeepAlives: true}, // a new connection is what is asked about
}

func healthy(node string, port int32) bool {
	r, err := client.Get("http://" + net.JoinHostPort(node, strconv.Itoa(int(port))) + "/healthz")
	if err != nil {
		return false
	}
	_ = r.Body.Close()
	return r.StatusCode == http.StatusOK
}

func route(addr netip.Addr, hops []string) {
	if addr.Is6() {
		unroute(addr) // replace adds next hops to an IPv6 route that has several
	}
	if len(hops) == 0 {
		ip("route", "replace", "unreachable", host(addr))
		return
	}
	args := []string{"route", "replace", host(addr)}
	for _, hop := range hops {
		args = append(args, "nexthop", "via", hop)
	}
	ip(args...)
}

// unroute removes the routes of addr; that there are none is no error.
func unroute(addr netip.Addr) {
	family := "-4"
	if addr.Is6() {
		family = "-6" // without it ip looks at IPv4 routes only
	}
	ip(family, "route", "flush", "exact", host(addr))
}

func ip(args ...string) {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		klog.Errorf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// host is a route's destination that is one address. ip takes its family from it.
func host(addr netip.Addr) string { return netip.PrefixFrom(addr, addr.BitLen()).String() }
