// SPDX-License-Identifier: Apache-2.0

package live

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// progress says what is done, and how long the rest takes: on a terminal in one line that
// changes, elsewhere in a line for each block.
type progress struct {
	out      *os.File
	terminal bool
	begin    time.Time
	total    time.Duration // as planned
	planned  time.Duration // of what is done
	current  time.Duration // of what is being done
}

func newProgress(out *os.File, total time.Duration) *progress {
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	return &progress{out: out, terminal: err == nil, begin: time.Now(), total: total}
}

// step says what comes next.
func (p *progress) step(what string, planned time.Duration) {
	p.current = planned
	if p.terminal {
		fmt.Fprintf(p.out, "\r\x1b[K%s; %s left", what, p.left())
	}
}

// done says what came out of it.
func (p *progress) done(what string) {
	p.planned += p.current
	if !p.terminal {
		p.line(fmt.Sprintf("%s; %s left", what, p.left()))
	}
}

// line writes a line that stays.
func (p *progress) line(what string) {
	if p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
	fmt.Fprintln(p.out, "bench: "+what)
}

// left is how long the rest takes, if it goes on as it did.
func (p *progress) left() time.Duration {
	return timeLeft(time.Since(p.begin), p.planned, p.total)
}

// timeLeft believes the plan until a tenth of it is done, and then what it took.
func timeLeft(passed, planned, total time.Duration) time.Duration {
	rest := max(0, total-planned)
	if planned > total/10 {
		rest = time.Duration(float64(rest) * passed.Seconds() / planned.Seconds())
	}
	return rest.Round(time.Second)
}
