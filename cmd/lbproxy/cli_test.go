// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/ebpf"
	"github.com/lbproxy/lbproxy/internal/server"
)

// eachVerb calls f for every command that people see, and its parts.
func eachVerb(cmd *cobra.Command, f func(*cobra.Command)) {
	for _, c := range cmd.Commands() {
		if !c.Hidden && c.Name() != "completion" && c.Name() != "help" { // which are cobra's
			f(c)
			eachVerb(c, f)
		}
	}
}

func TestEveryVerbHasHelp(t *testing.T) {
	a, _, _ := fakeApp(kernel{})
	root := a.root()
	seen := 0
	eachVerb(root, func(cmd *cobra.Command) {
		seen++
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: its summary is %q, want one without a full stop", cmd.CommandPath(), cmd.Short)
		}
		examples := strings.Split(cmd.Example, "\n")
		for _, line := range examples {
			if !strings.HasPrefix(line, "  "+cmd.CommandPath()) {
				t.Errorf("%s: example %q, want one of that command", cmd.CommandPath(), line)
			}
			checkExample(t, cmd, line)
		}
		if len(examples) < 2 {
			t.Errorf("%s: %d examples, want 2", cmd.CommandPath(), len(examples))
		}
	})
	if seen < 9 {
		t.Errorf("%d verbs, want all of them", seen)
	}
}

// checkExample parses the flags of an example, as its command would.
func checkExample(t *testing.T, cmd *cobra.Command, line string) {
	t.Helper()
	found, args, err := cmd.Root().Find(strings.Fields(line)[1:])
	if err != nil {
		t.Errorf("%s: %v", line, err)
		return
	}
	if err := found.ParseFlags(args); err != nil {
		t.Errorf("%s: %v", line, err)
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		a, stdout, stderr := fakeApp(kernel{})
		if code := a.execute([]string{"completion", shell}); code != exitOK || !strings.Contains(stdout.String(), "__complete") {
			t.Errorf("%s: code %d, %d bytes, stderr %q", shell, code, stdout.Len(), stderr)
		}
	}
	for args, want := range map[string]string{
		"get ":                  "services\t",
		"get services -o ":      "json\n",
		"run --dataplane ":      "iptables\n",
		"run --algorithm least": "least-time\n",
		"run --proxy-mode ":     "ebpf\n",
	} {
		a, stdout, _ := fakeApp(kernel{})
		if code := a.execute(append([]string{"__complete"}, strings.Split(args, " ")...)); code != exitOK || !strings.Contains(stdout.String(), want) {
			t.Errorf("after %q shells are offered %q, want %q in it", args, stdout, want)
		}
	}
}

func TestVersionIsReadable(t *testing.T) {
	a, stdout, _ := fakeApp(kernel{})
	if code := a.execute([]string{"version", "-o", "json"}); code != exitOK {
		t.Fatalf("code %d", code)
	}
	var b build
	if err := json.Unmarshal(stdout.Bytes(), &b); err != nil {
		t.Fatal(err)
	}
	if b.MapLayout != ebpf.Layout || b.Version != version || b.Commit == "" || !strings.HasPrefix(b.Go, "go") {
		t.Errorf("got %+v", b)
	}
}

// TestColours: at a terminal, unless the environment is against it, and never in what
// programs read.
func TestColours(t *testing.T) {
	const red = "\x1b[31mFAIL\x1b[0m"
	for _, tc := range []struct {
		name     string
		env      []string
		terminal bool
		args     string
		want     bool
	}{
		{"terminal", nil, true, "check", true},
		{"pipe", nil, false, "check", false},
		{"NO_COLOR", []string{"NO_COLOR=1"}, true, "check", false},
		{"empty NO_COLOR", []string{"NO_COLOR="}, true, "check", true},
		{"dumb", []string{"TERM=dumb"}, true, "check", false},
		{"JSON", nil, true, "check -o json", false},
	} {
		a, stdout, _ := fakeApp(exampleKernel())
		a.terminal, a.environ = func(w io.Writer) bool { return tc.terminal && w == stdout }, tc.env
		a.execute(append(strings.Fields(tc.args), "--manifests="+os.DevNull, "--healthz-bind-address=", "--metrics-bind-address="))
		if got := strings.Contains(stdout.String(), red); got != tc.want || !tc.want && strings.Contains(stdout.String(), "\x1b") {
			t.Errorf("%s: coloured %t, want %t:\n%q", tc.name, got, tc.want, stdout)
		}
	}
}

func TestPainterPaintsCells(t *testing.T) {
	var out bytes.Buffer
	text := "shop   web   suspect: OK it is   -\nFAIL   healthyish\n"
	if n, err := (painter{&out}).Write([]byte(text)); n != len(text) || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	want := "shop   web   \x1b[33msuspect\x1b[0m: OK it is   -\n\x1b[31mFAIL\x1b[0m   healthyish\n"
	if out.String() != want {
		t.Errorf("got %q\nwant %q", out.String(), want)
	}
}

func TestNoTerminalHere(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if isTerminal(f) || isTerminal(&bytes.Buffer{}) {
		t.Error("a file is taken for a terminal")
	}
}

// TestErrorsSayWhatToDoNext: those of the environment; others name what is wrong.
func TestErrorsSayWhatToDoNext(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{server.ErrNoAgent, "is lbproxy run active"},
		{dataplane.ErrNoState, "has lbproxy run ever been active"},
		{os.ErrPermission, "try sudo"},
		{errors.Join(errors.New("a"), errNoDataplane), "lbproxy check"},
	} {
		k := exampleKernel()
		k.ebpf.view = func(config.Config) (view, error) { return nil, tc.err }
		k.iptables.view = k.ebpf.view
		a, _, stderr := fakeApp(k)
		if code := a.execute([]string{"get", "services"}); code != exitFailure || !strings.Contains(stderr.String(), tc.want) {
			t.Errorf("%v: code %d, %q lacks %q", tc.err, code, stderr, tc.want)
		}
	}
}

// TestMaster: it replaces the address of the API server, not the credentials.
func TestMaster(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	kubeconfig := t.TempDir() + "/kubeconfig"
	if err := os.WriteFile(kubeconfig, []byte(`{clusters: [{name: c, cluster: {server: "https://old:1"}}], users: [{name: u, user: {token: t}}],
contexts: [{name: x, context: {cluster: c, user: u}}], current-context: x}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		cfg         config.Config
		host, token string
	}{
		{config.Config{Kubeconfig: kubeconfig}, "https://old:1", "t"},
		{config.Config{Kubeconfig: kubeconfig, Master: "https://192.0.2.1:6443"}, "https://192.0.2.1:6443", "t"},
		{config.Config{Master: "https://192.0.2.1:6443"}, "https://192.0.2.1:6443", ""},
	} {
		rc, err := clientConfig(tc.cfg)
		if err != nil || rc.Host != tc.host || rc.BearerToken != tc.token {
			t.Errorf("%+v: got %v, %v, want %s with token %q", tc.cfg, rc, err, tc.host, tc.token)
		}
	}
}

// TestManual: what would be taken for a request is not, and what is no verb for people has
// no page.
func TestManual(t *testing.T) {
	cmd := &cobra.Command{
		Use: "x", Short: "Do - it", Long: "First\n.SH of all\n\n'tis it:\n  0  good\n  1  bad", Example: "  x -n a\\b",
		Run: func(*cobra.Command, []string) {},
	}
	cmd.Flags().Bool("all", false, "everything")
	cmd.Flags().StringP("name", "n", "joe", "who")
	want := `.TH "X" 8 "" lbproxy "lbproxy manual"
.SH NAME
x \- Do \- it
.SH SYNOPSIS
\fBx [flags]\fR
.SH DESCRIPTION
First
\&.SH of all
.PP
\&'tis it:
.nf
0  good
1  bad
.fi
.SH OPTIONS
.TP
\fB\-\-all\fR
everything
.TP
\fB\-n, \-\-name string\fR
who (default joe)
.SH EXIT STATUS
.nf
` + exitStatus + `
.fi
.SH EXAMPLES
.nf
x \-n a\eb
.fi
`
	if got := manPage(cmd); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	dir := t.TempDir()
	for _, stale := range []string{"lbproxy-sing.8"} {
		if err := os.WriteFile(dir+"/"+stale, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a, _, _ := fakeApp(kernel{})
	if err := writeManual(a.root(), dir); err != nil {
		t.Fatal(err)
	}
	for page, want := range map[string]bool{"lbproxy": true, "lbproxy-run": true, "lbproxy-get-health": true, "lbproxy-document": false, "lbproxy-completion": false, "lbproxy-sing": false} {
		if _, err := os.Stat(dir + "/" + page + ".8"); (err == nil) != want {
			t.Errorf("%s.8: %v, want it there: %t", page, err, want)
		}
	}
}

// TestKubeProxysCommandLine: run and check take it; what has no effect is named.
func TestKubeProxysCommandLine(t *testing.T) {
	a, _, stderr := fakeApp(exampleKernel())
	to := t.TempDir() + "/config.yaml"
	args := "run --proxy-mode=nftables --cluster-cidr=10.0.0.0/8 -v=4 --ipvs-scheduler=rr --feature-gates=X=true --hostname-override=worker --write-config-to=" + to
	if code := a.execute(strings.Fields(args)); code != exitOK {
		t.Fatalf("code %d, stderr %q", code, stderr)
	}
	const want = `apiVersion: lbproxy.io/v1alpha1
clusterCIDR:
- 10.0.0.0/8
kind: ProxyConfiguration
logLevel: debug
nodeName: worker
`
	if got, err := os.ReadFile(to); err != nil || string(got) != want {
		t.Errorf("got %s, %v\nwant %s", got, err, want)
	}
	a, _, stderr = fakeApp(exampleKernel())
	a.execute(strings.Fields("run --init-only --proxy-mode=nftables --ipvs-scheduler=rr"))
	for _, want := range []string{`flag=--ipvs-scheduler because="there are no rules of IPVS"`, "auto is used\" mode=nftables"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("stderr %q lacks %q", stderr, want)
		}
	}
	a, _, stderr = fakeApp(exampleKernel())
	if code := a.execute(strings.Fields("get services --ipvs-scheduler=rr")); code != exitUsage {
		t.Errorf("get: code %d, stderr %q, want it refused", code, stderr)
	}
}
