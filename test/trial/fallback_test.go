// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestFallsBack: where eBPF cannot run, auto serves by iptables; the log, lbproxy check and
// a metric say why. An Event on the Node does so, too: see TestRunFallsBack of cmd/lbproxy.
func TestFallsBack(t *testing.T) {
	r := newRig(t)
	r.put("web.yaml", r.manifest("web", webVIP, "backend1", "backend2"))
	plain := filepath.Join(r.lab.Dir(), "plain")
	if err := os.Mkdir(plain, 0o755); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--dataplane=auto", "--bpffs=" + plain}
	why := "bpffs: " + plain + ": file system type"
	r.lbproxy(append([]string{"check", "--manifests=" + r.dir}, flags...)...).want(t, 0, "would use iptables: ebpf cannot run here: ", why)
	a := r.run(flags...)
	if line := a.log.line("level=WARN", "fell back to another dataplane", "dataplane=iptables", why); line == "" {
		t.Error("the log does not say that it fell back, and why")
	}
	_, body, err := r.get(metricsAddr, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	told := false
	for line := range strings.Lines(body) {
		told = told || strings.HasPrefix(line, "lbproxy_dataplane_fallback{") && strings.Contains(line, why) && strings.HasSuffix(line, " 1\n")
	}
	if !told {
		t.Errorf("no metric says why it fell back:\n%s", body)
	}
	r.serves(webVIP, "backend1", "backend2")
	a.end(syscall.SIGTERM)
	r.lbproxy("cleanup", "--bpffs="+plain)
	if left := r.rules(); len(left) > 0 {
		t.Errorf("%d lines of rules are left, such as %s", len(left), left[0])
	}
}
