// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// inText are commands within the sentences of README.md.
var inText = regexp.MustCompile("`(go run [^`]+)`")

// TestReadmeText runs those commands, which stay up until Ctrl-C.
func TestReadmeText(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repository(), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := inText.FindAllStringSubmatch(string(text), -1)
	for _, m := range found {
		var out log
		cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", "exec "+m[1]+" -lbproxy "+program)
		cmd.Dir = repository()
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.WaitDelay = patience
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		within(t, 3*patience, m[1]+" stays up", func() bool {
			select {
			case err := <-ended:
				t.Fatalf("%s ended: %v\n%s", m[1], err, out.String())
			default:
			}
			return out.line("stays until Ctrl-C") != ""
		})
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil { // as Ctrl-C does: to the whole group
			t.Fatal(err)
		}
		select {
		case <-ended:
		case <-time.After(patience):
			t.Fatalf("%s goes on after Ctrl-C\n%s", m[1], out.String())
		}
		if !strings.Contains(out.String(), " 0 wrong,") || strings.Contains(out.String(), "!!") {
			t.Errorf("%s:\n%s", m[1], out.String())
		}
	}
}
