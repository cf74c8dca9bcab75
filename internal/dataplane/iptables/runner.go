// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	goiptables "github.com/coreos/go-iptables/iptables"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// The two implementations of iptables: what one of them writes, the other does not see.
const (
	nftBackend    = "nft"
	legacyBackend = "legacy"
	autoBackend   = "auto"
)

// probeChain holds a rule for as long as it takes to see that the kernel knows it.
const probeChain = "LBP-PROBE"

// defaultWait is how long programs wait for the xtables lock.
const defaultWait = 5 * time.Second

// errLocked is wrapped by an error that says another program kept the xtables lock
// for the whole wait; nothing was changed. Only the legacy backend has that lock.
var errLocked = errors.New("the xtables lock is held by another program")

// runnerOptions are what runners can be told.
type runnerOptions struct {
	wait time.Duration // for the xtables lock, in whole seconds; 0: defaultWait
}

// runner changes and reads the tables of one family with one backend. Programs run in
// the network namespace of the calling thread. Its methods may be called from any
// goroutine; changes are made one after the other.
type runner struct {
	family lb.Family
	programs
	why  string // how the backend was chosen
	wait int    // seconds
	ipt  *goiptables.IPTables

	changing sync.Mutex // held while a change is made

	mu      sync.Mutex
	commits uint32           // transactions, for watcher
	counts  map[table]*tally // of all chains that were put
}

// newRunner finds the programs of a family and sees that they work, in both tables.
// backend is "auto", "nft" or "legacy". An error says what is missing.
func newRunner(f lb.Family, backend string, opts runnerOptions) (*runner, error) {
	c, err := chooseBackend(backend)
	if err != nil {
		return nil, err
	}
	r, err := openRunner(f, c.backend, opts)
	if err != nil {
		return nil, err
	}
	r.why = c.why
	scratch := change{}
	for _, t := range []table{natTable, filterTable} {
		scratch[t] = &batch{del: []string{probeChain}}
	}
	if err := r.restore(context.Background(), scratch); err != nil {
		return nil, fmt.Errorf("%s does not work here; kernel support for %s, or the right to change it, is missing: %w",
			r.restoreProgram, r.needs(), err)
	}
	return r, nil
}

// openRunner finds the programs of a family. It touches nothing in the kernel.
func openRunner(f lb.Family, backend string, opts runnerOptions) (*runner, error) {
	p, err := findPrograms(f, backend)
	if err != nil {
		return nil, err
	}
	wait := opts.wait
	if wait == 0 {
		wait = defaultWait
	}
	proto := goiptables.ProtocolIPv4
	if f == lb.IPv6 {
		proto = goiptables.ProtocolIPv6
	}
	r := &runner{family: f, programs: p, wait: max(1, int(wait/time.Second)), counts: map[table]*tally{natTable: newTally(), filterTable: newTally()}}
	r.ipt, err = goiptables.New(goiptables.IPFamily(proto), goiptables.Path(p.program), goiptables.Timeout(r.wait))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.program, err)
	}
	return r, nil
}

// backend returns "nft" or "legacy".
func (r *runner) backend() string { return r.kind }

// needs names what the kernel must have.
func (r *runner) needs() string {
	switch {
	case r.kind == nftBackend:
		return "nf_tables, nft_compat and nft_chain_nat (" + r.family.String() + ")"
	case r.family == lb.IPv6:
		return "ip6_tables, ip6table_nat and ip6table_filter"
	}
	return "ip_tables, iptable_nat and iptable_filter"
}

// restore makes a change: each table wholly or not at all, filter before nat; when one
// fails, those behind it are left alone. The error has what the program said and the
// line it said it about. It wraps errLocked when the xtables lock stayed held.
func (r *runner) restore(ctx context.Context, c change) error {
	if c.empty() {
		return nil
	}
	if err := c.valid(); err != nil {
		return err
	}
	r.changing.Lock()
	defer r.changing.Unlock()
	write := func(w io.Writer) error { return c.render(w, r.kind == nftBackend) }
	if err := r.feed(ctx, write); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for t, b := range c {
		r.count(t, b)
	}
	return nil
}

// count remembers a batch that was applied. r.mu is held.
func (r *runner) count(t table, b *batch) {
	if len(b.put)+len(b.del) == 0 {
		return
	}
	r.commits++
	for _, p := range b.put {
		r.counts[t].put(p)
	}
	for _, name := range b.del {
		r.counts[t].drop(name)
	}
}

// feed runs the restore program on the text that write writes. The text is streamed:
// if it ends early because this process ends, it has no COMMIT and changes nothing.
func (r *runner) feed(ctx context.Context, write func(io.Writer) error) error {
	cmd := exec.CommandContext(ctx, r.restoreProgram, "--noflush", "-w", strconv.Itoa(r.wait))
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr tail
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("%s: %w", r.restoreProgram, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", r.restoreProgram, err)
	}
	buf := bufio.NewWriterSize(in, 1<<16)
	errWrite := write(buf)
	if errWrite == nil {
		errWrite = buf.Flush()
	}
	in.Close()
	errWait := cmd.Wait()
	if err := ctx.Err(); err != nil && errWait != nil {
		return fmt.Errorf("%s: %w", r.restoreProgram, err)
	}
	if errWait != nil {
		return restoreError(r.restoreProgram, errWait, stderr.String(), write)
	}
	if errWrite != nil {
		return fmt.Errorf("%s: write its input: %w", r.restoreProgram, errWrite)
	}
	return nil
}

// failedLine finds the number of the line in what the programs say about it.
var failedLine = regexp.MustCompile(`line:? (\d+)`)

// restoreError describes a failed restore by what the program said, in one line, and
// by the text of the line that it named.
func restoreError(program string, cause error, said string, write func(io.Writer) error) error {
	if strings.Contains(said, "xtables lock") {
		return fmt.Errorf("%s: %w", program, errLocked)
	}
	var words []string
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "# Warning") && !strings.HasPrefix(line, "Try `") {
			words = append(words, line)
		}
	}
	msg := strings.Join(words, "; ")
	if m := failedLine.FindStringSubmatch(said); m != nil {
		n, _ := strconv.Atoi(m[1])
		l := lineWriter{skip: n - 1}
		_ = write(&l) // ends early, by its own error, when the line is complete
		msg += fmt.Sprintf(" (%q)", l.text.String())
	}
	return fmt.Errorf("%s: %w: %s", program, cause, msg)
}

// lineWriter keeps one line of what is written to it and then refuses more.
type lineWriter struct {
	skip int // lines before it
	text bytes.Buffer
	done bool
}

func (l *lineWriter) Write(b []byte) (int, error) {
	for _, c := range b {
		switch {
		case l.done:
			return 0, io.ErrShortWrite
		case c == '\n' && l.skip == 0:
			l.done = true
		case c == '\n':
			l.skip--
		case l.skip == 0:
			l.text.WriteByte(c)
		}
	}
	return len(b), nil
}

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

const tailSize = 4 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.b = append(t.b, b...)
	if n := len(t.b); n > tailSize {
		t.b = append(t.b[:0], t.b[n-tailSize:]...)
	}
	return len(b), nil
}

func (t *tail) String() string { return string(t.b) }

// supports tells whether programs and kernel know a rule: nil, or why not. The rule is
// in a chain that nothing refers to, for a moment.
func (r *runner) supports(ctx context.Context, t table, rule string) error {
	err := r.restore(ctx, change{t: {put: []chain{{probeChain, []string{rule}}}}})
	if err != nil {
		return err
	}
	return r.restore(ctx, change{t: {del: []string{probeChain}}})
}
