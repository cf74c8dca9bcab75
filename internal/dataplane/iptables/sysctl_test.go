// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestConntrackLimit(t *testing.T) {
	d := DefaultConntrack()
	for _, tc := range []struct {
		c    Conntrack
		cpus int
		want uint64
	}{
		{d, 1, 131072}, {d, 4, 131072}, {d, 8, 262144}, {d, 256, 1 << 20},
		{Conntrack{Min: 5}, 4, 0}, {Conntrack{MaxPerCore: 10}, 4, 40}, {Conntrack{MaxPerCore: 1, Min: 1 << 30}, 4, 1 << 20},
	} {
		if got := tc.c.limit(tc.cpus); got != tc.want {
			t.Errorf("%+v with %d CPUs: got %d, want %d", tc.c, tc.cpus, got, tc.want)
		}
	}
}

// settings are files that look like the kernel's.
type settings struct {
	t *testing.T
	sysctls
	logged *strings.Builder
}

func newSettings(t *testing.T, values map[string]string) settings {
	t.Helper()
	s := settings{t, sysctls{root: t.TempDir()}, &strings.Builder{}}
	s.hashsize = s.file("hashsize")
	s.log = slog.New(slog.NewTextHandler(s.logged, nil))
	for name, v := range values {
		if err := os.MkdirAll(filepath.Dir(s.file(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.file(name), []byte(v+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s settings) want(name, want string) {
	s.t.Helper()
	b, err := os.ReadFile(s.file(name))
	if got := strings.TrimSpace(string(b)); err != nil || got != want {
		s.t.Errorf("%s: got %q, error %v, want %q", name, got, err, want)
	}
}

const filterSettings = "net/netfilter/nf_conntrack_"

func TestConntrackApply(t *testing.T) {
	s := newSettings(t, map[string]string{
		filterSettings + "max": "1000", "hashsize": "10000000",
		filterSettings + "tcp_timeout_established": "432000", filterSettings + "tcp_timeout_close_wait": "60",
		filterSettings + "udp_timeout": "30", filterSettings + "udp_timeout_stream": "120",
		filterSettings + "tcp_be_liberal": "0", "net/ipv4/conf/all/route_localnet": "0",
	})
	c := DefaultConntrack()
	c.MaxPerCore, c.Min = 1, 131072
	if s.liberal() {
		t.Error("it is liberal before it was set")
	}
	c.TCPLiberal, c.UDPStream = true, 1500*time.Millisecond
	c.apply(s.sysctls)
	s.want(filterSettings+"max", "131072")
	s.want("hashsize", "10000000") // never lowered
	s.want(filterSettings+"tcp_timeout_established", "86400")
	s.want(filterSettings+"tcp_timeout_close_wait", "3600")
	s.want(filterSettings+"udp_timeout", "30") // 0 leaves it
	s.want(filterSettings+"udp_timeout_stream", "1")
	if !s.liberal() {
		t.Error("it is not liberal after it was set")
	}
	if !s.routeLocalnet() {
		t.Error("route_localnet was not set")
	}
	s.want("net/ipv4/conf/all/route_localnet", "1")
	if strings.Contains(s.logged.String(), "WARN") {
		t.Errorf("warnings:\n%s", s.logged)
	}
	s.logged.Reset()
	c.apply(s.sysctls)
	if s.logged.Len() > 0 {
		t.Errorf("a second time changed something:\n%s", s.logged)
	}
}

// TestSettingsThatCannotBeChanged: one warning each, and no file is made.
func TestSettingsThatCannotBeChanged(t *testing.T) {
	s := newSettings(t, nil)
	c := Conntrack{MaxPerCore: 1, TCPEstablished: time.Hour}
	c.apply(s.sysctls)
	if s.routeLocalnet() || s.liberal() {
		t.Error("a setting that is not there was set")
	}
	if got := strings.Count(s.logged.String(), "WARN"); got != 4 {
		t.Errorf("got %d warnings, want 4:\n%s", got, s.logged)
	}
	if list, err := filepath.Glob(filepath.Join(s.root, "*")); err != nil || len(list) > 0 {
		t.Errorf("files were made: %v, error %v", list, err)
	}
}

// TestNoConntrackIsNotSet: where the kernel tracks nothing there is no warning either.
func TestNoConntrackIsNotSet(t *testing.T) {
	s := newSettings(t, map[string]string{"hashsize": "1"})
	c := DefaultConntrack()
	c.applyIfThere(s.sysctls)
	s.want("hashsize", "1")
	if s.logged.Len() > 0 {
		t.Errorf("logged:\n%s", s.logged)
	}
	s = newSettings(t, map[string]string{filterSettings + "max": "1", "hashsize": "1"})
	c.applyIfThere(s.sysctls)
	if max, err := os.ReadFile(s.file(filterSettings + "max")); err != nil || string(max) == "1\n" {
		t.Errorf("max %q, %v: want it raised", max, err)
	}
}

// TestLocalnetIsReset: only where lbproxy has set it, and nobody else has it now.
func TestLocalnetIsReset(t *testing.T) {
	for _, tc := range []struct {
		what, before string
		given        bool
		want         string
	}{
		{"set by lbproxy", "0", false, "0"},
		{"set before", "1", false, "1"},
		{"set by lbproxy, given to kube-proxy", "0", true, "1"},
		{"set before, given to kube-proxy", "1", true, "1"},
	} {
		const name = "net/ipv4/conf/all/route_localnet"
		s := newSettings(t, map[string]string{name: tc.before})
		opts := Options{LockFile: filepath.Join(t.TempDir(), "lock")}
		openLocalnet(opts, s.sysctls)
		if tc.given {
			if err := GiveLocalnet(opts); err != nil {
				t.Errorf("%s: %v", tc.what, err)
			}
		}
		closeLocalnet(opts, s.sysctls)
		t.Log(tc.what)
		s.want(name, tc.want)
	}
}
