// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// topPoll is how long a key is waited for before the size and ctx are looked at.
const topPoll = 250 * time.Millisecond

// Keys that are more than a character, as terminals send them.
const (
	keyUp       = "\x1b[A"
	keyDown     = "\x1b[B"
	keyRight    = "\x1b[C"
	keyLeft     = "\x1b[D"
	keyPageUp   = "\x1b[5~"
	keyPageDown = "\x1b[6~"
)

// terminal is where somebody looks and types.
type terminal struct {
	in, out *os.File
	shown   []byte // last
}

// size returns columns and rows.
func (t *terminal) size() (*unix.Winsize, error) {
	return unix.IoctlGetWinsize(int(t.out.Fd()), unix.TIOCGWINSZ)
}

func (t *terminal) mode() (*unix.Termios, error) {
	return unix.IoctlGetTermios(int(t.in.Fd()), unix.TCGETS)
}

// raw makes every key readable at once and shows an empty screen; restore undoes it.
func (t *terminal) raw() (restore func() error, err error) {
	before, err := t.mode()
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	mode := *before
	mode.Lflag &^= unix.ICANON | unix.ECHO | unix.ISIG
	mode.Iflag &^= unix.ICRNL | unix.IXON
	mode.Cc[unix.VMIN], mode.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS, &mode); err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	_, err = t.out.WriteString("\x1b[?1049h\x1b[?25l") // the other screen, without a cursor
	return func() error {
		_, err := t.out.WriteString("\x1b[?25h\x1b[?1049l")
		return errors.Join(err, unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS, before))
	}, err
}

// draw shows m in one write, over what is there, unless that is the same: nothing flickers.
func (t *terminal) draw(m *topModel) error {
	size, err := t.size()
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	var b bytes.Buffer
	b.WriteString("\x1b[H")
	for i, row := range m.screen(int(size.Col), int(size.Row)) {
		if i > 0 {
			b.WriteString("\r\n")
		}
		on := ""
		if row.service != "" && row.service == m.selected {
			on += "\x1b[1m"
		}
		if row.alarm {
			on += "\x1b[31m"
		}
		b.WriteString(on + row.text)
		if on != "" {
			b.WriteString("\x1b[0m")
		}
		b.WriteString("\x1b[K")
	}
	b.WriteString("\x1b[J")
	if bytes.Equal(b.Bytes(), t.shown) {
		return nil
	}
	t.shown = b.Bytes()
	_, err = t.out.Write(t.shown)
	return err
}

// keys returns the keys that are pressed within d, if there are some.
func (t *terminal) keys(d time.Duration) ([]string, error) {
	fds := []unix.PollFd{{Fd: int32(t.in.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, max(0, int(d.Milliseconds())+1))
	if errors.Is(err, syscall.EINTR) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	var buf [64]byte
	n, err = unix.Read(int(t.in.Fd()), buf[:])
	if err != nil || n <= 0 {
		return []string{"q"}, nil // nobody sits there any more
	}
	return splitKeys(string(buf[:n])), nil
}

// splitKeys tells keys apart that came at once.
func splitKeys(text string) (keys []string) {
	for text != "" {
		n := 1
		if rest, ok := strings.CutPrefix(text, "\x1b["); ok {
			end := strings.IndexFunc(rest, func(r rune) bool { return r >= '@' && r <= '~' })
			n = 2 + max(0, end+1)
		}
		keys, text = append(keys, text[:n]), text[n:]
	}
	return keys
}

// stopSignals ends ctx with a signal that would end the process: the terminal is to be as it was.
func stopSignals(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
}
