// SPDX-License-Identifier: Apache-2.0

package picktest

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"testing"
)

// host makes picks with the same header, compiled for the host.
type host struct {
	machine
	in  *bufio.Writer
	out io.Reader
}

// newHost compiles host.c and starts it; it ends with the test.
func newHost(t testing.TB) *host {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "host")
	build := exec.Command("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover",
		"-I../../../bpf", "-I../../../bpf/include", "-o", bin, "c/host.c")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	cmd := exec.Command(bin)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("host: %v", err)
		}
	})
	h := &host{in: bufio.NewWriter(in), out: out}
	h.mem, h.run = h, h.makeCalls
	return h
}

func (h *host) WriteAt(p []byte, offset int64) (int, error) {
	head := binary.LittleEndian.AppendUint32(nil, uint32(offset))
	head = binary.LittleEndian.AppendUint32(head, uint32(len(p)))
	if _, err := h.in.Write(head); err != nil {
		return 0, err
	}
	return h.in.Write(p)
}

func (h *host) makeCalls(_ int, results []byte) error {
	if _, err := h.WriteAt(nil, 0); err != nil {
		return err
	}
	if err := h.in.Flush(); err != nil {
		return err
	}
	if _, err := io.ReadFull(h.out, results); err != nil {
		return fmt.Errorf("host: %w", err)
	}
	return nil
}
