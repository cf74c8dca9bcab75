// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// elsewhere are the commands of README.md that this test does not run, by how
// they begin, and why.
var elsewhere = map[string]string{
	"make demo":        "a step of CI of its own",
	"make test":        "CI runs each of its parts: this is one of them",
	"helm install":     "needs a cluster; make test-deploy renders the chart with Helm's library",
	"kubectl apply":    "needs a cluster; test/cluster runs lbproxy against an API server",
	"kubectl annotate": "needs a cluster; test/cluster changes the annotation through the API",
}

// line is a command of README.md.
type line struct {
	number int
	text   string // without sudo
}

// TestReadme runs the commands of README.md in their order, as they are written:
// `lbproxy run` stays in the background until `cleanup` needs it stopped.
func TestReadme(t *testing.T) {
	r := newRig(t)
	r.home = clone(t)
	var a *agent
	ran := map[string]bool{}
	for _, l := range commands(t, filepath.Join(repository(), "README.md")) {
		if why, ok := reason(l.text); ok {
			t.Logf("README.md:%d: %s: not here: %s", l.number, l.text, why)
			wantFiles(t, l)
			continue
		}
		t.Logf("README.md:%d: %s", l.number, l.text)
		if strings.HasPrefix(l.text, "go run ./bench/") {
			runHere(t, l)
			continue
		}
		verb, ok := strings.CutPrefix(l.text, "bin/lbproxy ")
		if !ok {
			t.Errorf("README.md:%d: %q is not run by any test: run it, or say in elsewhere why not", l.number, l.text)
			continue
		}
		verb, _, _ = strings.Cut(verb, " ")
		ran[verb] = true
		switch verb {
		case "run":
			a = r.launch(r.shell(l.text))
			a.awaitReady()
			continue
		case "cleanup":
			if a == nil {
				t.Fatalf("README.md:%d: cleanup before run", l.number)
			}
			r.lbproxy("cleanup").want(t, 1, "another lbproxy is running")
			if code := a.end(syscall.SIGTERM); code != 0 {
				t.Errorf("lbproxy run ended with %d", code)
			}
			r.follows(shopVIP, "backend1", "backend2", "backend3", "remote1") // "Stopping the agent leaves everything in place"
		}
		res := r.finish(r.shell(l.text))
		res.want(t, 0)
		if strings.TrimSpace(res.stdout+res.stderr) == "" {
			t.Errorf("README.md:%d: %q says nothing", l.number, l.text)
		}
		t.Logf("%s%s", res.stdout, res.stderr)
	}
	for _, verb := range []string{"check", "run", "get", "explain", "cleanup"} {
		if !ran[verb] {
			t.Errorf("README.md shows no bin/lbproxy %s", verb)
		}
	}
	r.nothingLeft()
	r.gone(shopVIP)
}

// shopVIP is the cluster IP of demo/manifests/shop.yaml.
const shopVIP vip = "10.96.0.10:80"

// TestReadmeNamesEveryVerb compares the table of verbs with the program.
func TestReadmeNamesEveryVerb(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repository(), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var shown, there []string
	for row := range strings.Lines(string(text)) {
		if cell, ok := strings.CutPrefix(row, "| `lbproxy "); ok {
			verb, _, _ := strings.Cut(strings.TrimRight(cell, "\n"), "`")
			verb, _, _ = strings.Cut(verb, " ")
			shown = append(shown, verb)
		}
	}
	help, err := exec.Command(program, "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(help), "Available Commands:\n")
	for row := range strings.Lines(list) {
		f := strings.Fields(row)
		if len(f) == 0 {
			break
		}
		if f[0] != "help" {
			there = append(there, f[0])
		}
	}
	slices.Sort(shown)
	slices.Sort(there)
	if len(there) == 0 || !slices.Equal(shown, there) {
		t.Errorf("README.md has the verbs %q, lbproxy has %q", shown, there)
	}
}

// commands returns the command lines of the ```sh blocks of a file.
func commands(t *testing.T, file string) []line {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var lines []line
	inside, number := false, 0
	for l := range strings.Lines(string(text)) {
		number++
		l = strings.TrimSpace(l)
		switch {
		case strings.HasPrefix(l, "```"):
			inside = !inside && l == "```sh"
		case !inside || l == "" || strings.HasPrefix(l, "#"):
		default:
			lines = append(lines, line{number, strings.TrimPrefix(l, "sudo ")})
		}
	}
	if len(lines) == 0 {
		t.Fatalf("%s has no commands", file)
	}
	return lines
}

func reason(command string) (string, bool) {
	for begin, why := range elsewhere {
		if command == begin || strings.HasPrefix(command, begin+" ") {
			return why, true
		}
	}
	return "", false
}

// wantFiles checks that the files that a command names with -f are there.
func wantFiles(t *testing.T, l line) {
	t.Helper()
	words := strings.Fields(l.text)
	for i, w := range words {
		if w != "-f" || i+1 == len(words) {
			continue
		}
		if _, err := os.Stat(filepath.Join(repository(), words[i+1])); err != nil {
			t.Errorf("README.md:%d: %v", l.number, err)
		}
	}
}

// shell prepares a line of the README as a shell on the node would run it. The
// shell becomes the command, so that signals reach it.
func (r *rig) shell(text string) *exec.Cmd {
	cmd := exec.CommandContext(r.t.Context(), "/bin/sh", "-c", "exec "+text)
	cmd.Dir, cmd.Env = r.home, r.env()
	return cmd
}

// runHere runs a command that needs the repository, and nothing of a node.
func runHere(t *testing.T, l line) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", l.text)
	cmd.Dir = repository()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("README.md:%d: %s: %v\n%s", l.number, l.text, err, out)
	}
}

// clone returns a directory like a clone of the repository after `make build`,
// made of links.
func clone(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root, err := filepath.Abs(repository())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"demo", "deploy"} {
		if err := os.Symlink(filepath.Join(root, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Dir(program), filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	return dir
}
