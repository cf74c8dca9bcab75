// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"fmt"
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
	"make demo": "a step of CI of its own",
	"make test": "CI runs each of its parts: this is one of them",
}

// line is a command of a file.
type line struct {
	where string // file:line
	text  string // without sudo
}

// TestReadme runs the commands of README.md in their order, as they are written:
// `lbproxy run` stays in the background until `cleanup` needs it stopped.
func TestReadme(t *testing.T) {
	r := newRig(t)
	r.home = clone(t)
	var a *agent
	ran := map[string]bool{}
	for _, l := range commands(t, "README.md", "TestReadme") {
		if why, ok := reason(l.text); ok {
			t.Logf("%s: %s: not here: %s", l.where, l.text, why)
			continue
		}
		t.Logf("%s: %s", l.where, l.text)
		if strings.HasPrefix(l.text, "go run ./bench/") {
			runHere(t, l)
			continue
		}
		verb, ok := strings.CutPrefix(l.text, "bin/lbproxy ")
		if !ok {
			t.Errorf("%s: %q is not run by any test: run it, or say in elsewhere why not", l.where, l.text)
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
				t.Fatalf("%s: cleanup before run", l.where)
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
			t.Errorf("%s: %q says nothing", l.where, l.text)
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

// TestDocs runs the commands of the other files, beside an agent that serves what README.md
// serves. None of them changes anything.
func TestDocs(t *testing.T) {
	r := newRig(t)
	r.home = clone(t)
	r.launch(r.shell("bin/lbproxy run --manifests demo/manifests --node-name node --cluster-cidr 10.244.0.0/16,fd00:10:244::/48")).awaitReady()
	files, err := filepath.Glob(filepath.Join(repository(), "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, file := range files {
		name := filepath.Join("docs", filepath.Base(file))
		for _, l := range commands(t, name, "TestDocs") {
			ran++
			if strings.HasPrefix(l.text, "go run ./bench/") {
				runHere(t, l)
				continue
			}
			res := r.finish(r.shell(l.text))
			if res.want(t, 0); strings.TrimSpace(res.stdout+res.stderr) == "" {
				t.Errorf("%s: %q says nothing", l.where, l.text)
			}
		}
	}
	if ran == 0 {
		t.Error("no file has a command for this test")
	}
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

// commands returns the command lines of the ```sh blocks of a file that a test runs: the
// line above a block says so. hack/readme-commands.sh sees to it that there is such a line.
func commands(t *testing.T, name, test string) []line {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository(), name))
	if err != nil {
		t.Fatal(err)
	}
	var lines []line
	all := strings.Contains(string(text), "<!-- all run by: "+test+" -->")
	inside, number, above := false, 0, ""
	for l := range strings.Lines(string(text)) {
		number++
		l = strings.TrimSpace(l)
		switch {
		case strings.HasPrefix(l, "```"):
			inside = !inside && l == "```sh" && (all || above == "<!-- run by: "+test+" -->")
		case !inside || l == "" || strings.HasPrefix(l, "#"):
		default:
			lines = append(lines, line{fmt.Sprintf("%s:%d", name, number), strings.TrimPrefix(l, "sudo ")})
		}
		above = l
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
		t.Errorf("%s: %s: %v\n%s", l.where, l.text, err, out)
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
