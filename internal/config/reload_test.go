// SPDX-License-Identifier: Apache-2.0

package config

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// rewrite replaces the file that l was read from.
func rewrite(t *testing.T, l *Loader, file string) {
	t.Helper()
	if err := os.WriteFile(l.Path(), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestReload: live fields are taken over, others are told and stay, and what flags and the
// environment say has its precedence still.
func TestReload(t *testing.T) {
	env := []string{"LBPROXY_SLOW_START=10s"}
	l, before, err := load(t, "algorithm: random\nbpffs: /old\nlogLevel: warn", env, []string{"--health-check=tcp"})
	if err != nil {
		t.Fatal(err)
	}
	rewrite(t, l, "algorithm: round-robin\nbpffs: /new\nslowStart: 1m\nhealthCheck: http\nhealthCheckRise: 9\ndataplane: iptables")
	next, got, changes, err := l.Reload(env)
	if err != nil {
		t.Fatal(err)
	}
	want := before
	want.Algorithm, want.LogLevel, want.Health.Rise = "round-robin", 0, 9
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if want := []Change{
		{"algorithm", "random", "round-robin", true},
		{"dataplane", "auto", "iptables", false},
		{"bpffs", "/old", "/new", false},
		{"healthCheckRise", "2", "9", true},
		{"logLevel", "warn", "info", true},
	}; !reflect.DeepEqual(changes, want) {
		t.Errorf("changes are\n%v, want\n%v", changes, want)
	}
	src := next.Sources()
	if src["healthCheck"] != "--health-check" || src["slowStart"] != "LBPROXY_SLOW_START" || src["dataplane"] != "" || !strings.HasSuffix(src["algorithm"], ": algorithm") {
		t.Errorf("sources are %q", src)
	}
	if next.Hash() == l.Hash() || len(next.Hash()) != 16 {
		t.Errorf("hashes are %q and %q", l.Hash(), next.Hash())
	}
	rewrite(t, l, "bpffs: /new\nalgorithm: round-robin")
	if _, _, changes, err = next.Reload(env); err != nil || len(changes) != 2 || changes[0].Field != "bpffs" || changes[0].Live {
		t.Errorf("again: %v, %v, want bpffs to wait still, and healthCheckRise to be as before", changes, err)
	}
}

// TestReloadRejects: a file that cannot be used changes nothing.
func TestReloadRejects(t *testing.T) {
	l, before, err := load(t, "algorithm: random\nhealthScriptDir: /s", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"algorithm: fastest": "unknown algorithm",
		"algorithm: [":       "yaml",
		" \n":                "is empty",
		"healthCheckScript: x\nhealthCheck: exec\nhealthScriptDir: ''": "exec needs health-script-dir",
		"kind: ConfigMap": "want ProxyConfiguration",
	} {
		rewrite(t, l, file)
		if _, _, _, err := l.Reload(nil); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), l.Path()) {
			t.Errorf("%q: error %v, want %q and the file's path", file, err, want)
		}
	}
	if err := os.Remove(l.Path()); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := l.Reload(nil); err == nil {
		t.Error("a file that is gone is no error")
	}
	if !reflect.DeepEqual(l.config, before) {
		t.Errorf("got %+v, want it as it was", l.config)
	}
	// exec needs a directory that only a restart would know
	l, _, err = load(t, "algorithm: random", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	rewrite(t, l, "healthCheck: exec\nhealthCheckScript: x\nhealthScriptDir: /s")
	if _, _, _, err := l.Reload(nil); err == nil || !strings.Contains(err.Error(), "with what waits for a restart: health-check") {
		t.Errorf("error %v, want it about what waits for a restart", err)
	}
}

func TestReloadKeepsFlagsOfKubeProxy(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "c.yaml")
	if err := os.WriteFile(path, []byte("kind: ProxyConfiguration\napiVersion: lbproxy.io/v1alpha1"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, before, err := loadFlags(t, nil, "--config="+path, "--proxy-mode=nftables", "--iptables-sync-period=9s", "--bind-address=::")
	if err != nil {
		t.Fatal(err)
	}
	next, got, changes, err := l.Reload(nil)
	if err != nil || len(changes) > 0 || !reflect.DeepEqual(got, before) || next.ForeignMode() != modeNFTables {
		t.Errorf("%v, %v, mode %q\ngot  %+v\nwant %+v", changes, err, next.ForeignMode(), got, before)
	}
}

// TestWatch: one call for each change, however the file changes, and none for half of one.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		put := func(name, text string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		link := func(to string) { // as the kubelet does
			if err := os.Symlink(to, filepath.Join(dir, "tmp")); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(dir, "tmp"), filepath.Join(dir, "..data")); err != nil {
				t.Fatal(err)
			}
		}
		put("a", "1")
		put("b", "22")
		link("a")
		l := New()
		l.path = filepath.Join(dir, "..data")
		l.seen = stat(l.path)
		ctx, cancel := context.WithCancel(t.Context())
		var calls atomic.Int32 // a timer that fires knows nothing of who looked before
		done := make(chan struct{})
		go func() {
			defer close(done)
			l.Watch(ctx, time.Second, func() { calls.Add(1) })
		}()
		step := func(what string, want int32) {
			t.Helper()
			<-time.After(time.Second)
			synctest.Wait()
			if got := calls.Load(); got != want {
				t.Errorf("%s: %d calls, want %d", what, got, want)
			}
		}
		step("nothing", 0)
		step("nothing", 0)
		link("b")
		step("another file: once seen", 0)
		step("another file: twice", 1)
		step("another file: no more", 1)
		put("b", "333")
		step("written", 1)
		put("b", "4444")
		step("written on", 1)
		step("complete", 2)
		if err := os.Remove(filepath.Join(dir, "b")); err != nil {
			t.Fatal(err)
		}
		step("removed", 2)
		step("gone", 3)
		cancel()
		<-done
		put("b", "5")
		l.seen = nil // a change before anybody looks
		ctx, cancel = context.WithCancel(t.Context())
		defer cancel()
		go l.Watch(ctx, time.Second, func() { calls.Add(1) })
		step("before: once seen", 3)
		step("before: twice", 4)
	})
}
