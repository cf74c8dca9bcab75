// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
)

// TestRunServesTheWebPage: only with --web, and it shows what the kernel has.
func TestRunServesTheWebPage(t *testing.T) {
	for _, on := range []bool{false, true} {
		args := []string{"--manifests=" + t.TempDir()}
		if on {
			args = append(args, "--web")
		}
		serves := opens(&fakePlane{services: map[string]*dataplane.Service{}})
		serves.view = func(config.Config) (view, error) { return exampleView(), nil }
		proc := startWith(t, kernel{ebpf: serves, iptables: noState()}, args...)
		r := proc.await(func(r record) bool { return r.Server == "metrics" })
		body := fetch(t, "http://"+r.Address+"/web/data.json", func(code int, _ string) bool {
			return (code == http.StatusNotFound) == !on
		})
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if code := <-proc.code; code != exitOK {
			t.Errorf("code %d", code)
		}
		if !on {
			continue
		}
		var page webPage
		if err := json.Unmarshal([]byte(body), &page); err != nil || page.Dataplane != "ebpf" || len(page.Live.Services) != len(exampleView().services) {
			t.Errorf("%v: %+v", err, page)
		}
		if !strings.Contains(body, `"notes":[]`) {
			t.Errorf("notes in %s", body)
		}
	}
}
