// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The backends of iptables: what one of them writes, the other does not see.
const (
	NFT    = "nft"
	Legacy = "legacy"
)

// envAid says that this process is to be called as iptables-restore.
const envAid = "BENCH_CONTROL_AID"

// AidMain turns this process into iptables-nft-restore if it was called by the name of
// iptables-restore, with one line more in its input: -S, without the name of a chain.
// From then on the program has every chain in its cache. Without it, it looks every
// line's chain up in a sorted list, and kube-proxy's 120,000 chains of 10,000 Services
// with 10 endpoints, in an order of their hashes, take it more than 150 s.
func AidMain() {
	name := filepath.Base(os.Args[0])
	if os.Getenv(envAid) == "" || !strings.HasSuffix(name, "-restore") {
		return
	}
	err := aided(strings.Replace(name, "-", "-"+NFT+"-", 1), os.Args[1:])
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	}
	fmt.Fprintln(os.Stderr, "aid:", err)
	os.Exit(1)
}

// aided runs a program whose input is this one's with the line more. What that prints is
// nobody's business.
func aided(program string, args []string) error {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return fmt.Errorf("input: %w", err)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(listFirst(text)), os.Stderr
	return cmd.Run()
}

// listFirst makes -S the first command for table nat.
func listFirst(text []byte) []byte {
	return bytes.Replace(text, []byte("*nat\n"), []byte("*nat\n-S\n"), 1)
}

// programs is a directory of the names that kube-proxy calls iptables by, for PATH.
func (n *Node) programs() string { return filepath.Join(n.Lab.Dir(), "bin") }

// Lock is the lock file of the legacy programs in this place.
func (n *Node) Lock() string { return filepath.Join(n.Lab.Dir(), "xtables.lock") }

// provide fills programs with those of a backend.
func (n *Node) provide(backend string) error {
	if err := os.MkdirAll(n.programs(), 0o755); err != nil {
		return fmt.Errorf("programs: %w", err)
	}
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, end := range []string{"", "-save", "-restore"} {
			path, err := exec.LookPath(name + "-" + backend + end)
			if err != nil {
				return fmt.Errorf("programs: %w", err)
			}
			if err := n.link(name+end, path); err != nil {
				return err
			}
		}
	}
	return nil
}

// aid puts this program in the place of the restore program.
func (n *Node) aid() error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("programs: %w", err)
	}
	return n.link("iptables-restore", exe)
}

// link makes name, which may be there, a link to path.
func (n *Node) link(name, path string) error {
	at := filepath.Join(n.programs(), name)
	err := os.Symlink(path, at+".new")
	if err == nil {
		err = os.Rename(at+".new", at)
	}
	if err != nil {
		return fmt.Errorf("programs: %w", err)
	}
	return nil
}

// env is what the programs of a backend have in their environment.
func (n *Node) env(backend string) []string {
	if backend == "" {
		return nil
	}
	return []string{
		"PATH=" + n.programs() + string(filepath.ListSeparator) + os.Getenv("PATH"),
		"XTABLES_LOCKFILE=" + n.Lock(), envAid + "=1",
	}
}
