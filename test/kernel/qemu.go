// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var (
	errTimeout = errors.New("out of time")
	errDied    = errors.New("the machine stopped before the tests were done")
)

// machine is one virtual machine to boot.
type machine struct {
	opt    options
	kernel kernel
	initrd string // path of the initramfs
	token  string // marks the init script's lines; tests cannot guess it
}

// newToken returns a string that no test prints by accident.
func newToken() string { return rand.Text() }

// command builds the qemu command line. KVM is never used: nested
// virtualisation hangs where this runs, and results must not depend on it.
func (m *machine) command(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, qemu,
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none",
		"-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", strconv.Itoa(m.opt.cpus), "-m", strconv.Itoa(m.opt.memory),
		"-serial", "stdio",
		"-kernel", m.kernel.image(), "-initrd", m.initrd,
		"-append", "console=ttyS0 quiet panic=-1 oops=panic mitigations=off",
	)
	// qemu must not outlive us, however we end.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// run boots the machine and copies the tests' output to stdout as it comes.
// It returns an error unless every test ran to its end.
func (m *machine) run(ctx context.Context, stdout, stderr io.Writer) (result, error) {
	// Pdeathsig fires when the thread that started qemu exits, so keep it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := m.command(ctx)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return result{}, fmt.Errorf("%s: pipe: %w", qemu, err)
	}
	var diag strings.Builder
	cmd.Stderr = &diag
	c := console{token: m.token, out: stdout, log: stderr, start: time.Now()}
	if err := cmd.Start(); err != nil {
		return result{}, fmt.Errorf("%s: start: %w", qemu, err)
	}
	readErr := c.read(out)
	waitErr := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return result{}, fmt.Errorf("%w (while: %s)", context.Cause(ctx), c.phase())
	case c.broken != "":
		return result{}, fmt.Errorf("%w: init: %s", errDied, c.broken)
	case !c.done:
		return result{}, fmt.Errorf("%w (while: %s) %s",
			errDied, c.phase(), strings.TrimSpace(errors.Join(readErr, waitErr, diagnosis(&diag)).Error()))
	}
	return c.result, nil
}

// diagnosis turns what qemu wrote into an error.
func diagnosis(diag *strings.Builder) error {
	if s := strings.TrimSpace(diag.String()); s != "" {
		return fmt.Errorf("%s: %s", qemu, s)
	}
	return errors.New("kernel panic, or power cut")
}

// result is what the finished machine said.
type result struct {
	release string
	boot    time.Duration // from starting qemu to the first test
	outcome []outcome
}

// outcome is how one test binary ended.
type outcome struct {
	name   string
	code   int
	warned bool // the kernel warned while it ran
	took   time.Duration
}

// report prints a line for each binary and returns the exit code.
func (r result) report(w io.Writer) int {
	code := exitOK
	for _, o := range r.outcome {
		verdict := "ok  "
		switch {
		case o.code != 0:
			verdict = fmt.Sprintf("FAIL (exit %d)", o.code)
		case o.warned:
			verdict = "FAIL (kernel warning)"
		}
		if o.code != 0 || o.warned {
			code = exitFailed
		}
		fmt.Fprintf(w, "test/kernel: %s %s %s (boot %.1fs, tests %.1fs)\n",
			verdict, o.name, r.release, r.boot.Seconds(), o.took.Seconds())
	}
	return code
}

// console reads the serial console.
type console struct {
	token    string
	out, log io.Writer
	start    time.Time

	result
	current string    // the running test, or ""
	since   time.Time // when it started
	warned  bool
	broken  string // why init gave up
	done    bool
}

// phase says what the machine was last doing.
func (c *console) phase() string {
	switch {
	case c.current != "":
		return c.current
	case c.release == "":
		return "booting"
	}
	return "between tests"
}

// read copies lines to out until the console closes, and acts on those that
// the init script marked.
func (c *console) read(r io.Reader) error {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			c.line(clean(line))
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("serial console: %w", err)
		}
	}
}

// line handles one clean line. A mark may follow a test's unfinished line.
func (c *console) line(s string) {
	if c.done {
		return // the kernel says goodbye
	}
	text, mark, marked := strings.Cut(s, "@@"+c.token+" ")
	if text != "" || !marked {
		fmt.Fprintln(c.out, text)
	}
	if !marked {
		return
	}
	verb, rest, _ := strings.Cut(mark, " ")
	switch verb {
	case "booted":
		c.release, c.boot = rest, time.Since(c.start)
		fmt.Fprintf(c.log, "test/kernel: booted %s in %.1fs\n", c.release, c.boot.Seconds())
	case "start":
		c.current, c.since, c.warned = rest, time.Now(), false
	case "warned":
		c.warned = true
	case "broken":
		c.broken = rest
	case "exit":
		num, name, _ := strings.Cut(rest, " ")
		code, err := strconv.Atoi(num)
		if err != nil {
			code = -1
		}
		c.outcome = append(c.outcome, outcome{name, code, c.warned, time.Since(c.since)})
		c.current = ""
	case "finished":
		c.done = true
	}
}

// escapes matches terminal control sequences, which firmware and kernel emit.
var escapes = regexp.MustCompile(`\x1b(\[[0-9;?]*[ -/]*[@-~]|[()][A-Za-z0-9]|[@-Z\\-_c])`)

// clean removes terminal control sequences and control characters but tabs.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if (r < ' ' && r != '\t') || r == 0x7f {
			return -1
		}
		return r
	}, escapes.ReplaceAllString(s, ""))
}
