// SPDX-License-Identifier: Apache-2.0

package config

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// Change is a field that is another one than before.
type Change struct {
	Field string `json:"field"` // its name in the file
	From  string `json:"from"`
	To    string `json:"to"`

	Live bool `json:"-"` // it is in force; else it waits for a restart
}

// Reload reads everything again: the same flags, environ and the file. It returns a Loader
// that has the live fields as they are read now and the others as l has them, with its
// configuration, and what is said now that is not what l has. The error is that of Load, or
// about a file without content, as one is that is just being written; l is as it was.
func (l *Loader) Reload(environ []string) (*Loader, Config, []Change, error) {
	if content, err := os.ReadFile(l.path); l.path != "" && err == nil && strings.TrimSpace(string(content)) == "" {
		return nil, Config{}, nil, &Error{configFlag, l.path, errors.New("is empty: want at least its kind, if all else is to be default")}
	}
	next := New(l.algorithms...)
	next.foreign = l.foreign
	var errs []error
	l.flags.VisitAll(func(f *pflag.Flag) {
		if l.sources[f.Name] == fromFlag {
			errs = append(errs, next.flags.Set(f.Name, f.Value.String()))
		}
	})
	_, err := next.Load(environ)
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, Config{}, nil, err
	}
	changes, err := next.keep(l)
	if err != nil {
		return nil, Config{}, nil, err
	}
	return next, next.config, changes, nil
}

// keep gives l the fields of running that cannot change, and returns what differs.
func (l *Loader) keep(running *Loader) (changes []Change, err error) {
	var errs []error
	l.flags.VisitAll(func(f *pflag.Flag) {
		v, _ := f.Value.(described)
		was, is := running.flags.Lookup(f.Name).Value.String(), f.Value.String()
		live := v.known().isLive
		if was != is {
			changes = append(changes, Change{fieldName(f.Name), was, is, live})
		}
		if live {
			return
		}
		if was != is {
			errs = append(errs, f.Value.Set(was))
		}
		if delete(l.sources, f.Name); running.sources[f.Name] != "" {
			l.sources[f.Name] = running.sources[f.Name]
		}
	})
	l.foreignMode = running.foreignMode
	for _, err := range l.combinations() {
		errs = append(errs, fmt.Errorf("with what waits for a restart: %w", err))
	}
	return changes, errors.Join(errs...)
}

// Path returns the path of the file; empty: there is none.
func (l *Loader) Path() string { return l.path }

// Hash returns a hash of the file as it was read last, or nothing if there is none.
func (l *Loader) Hash() string { return l.hash }

func hashOf(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:8])
}

// Watch calls changed when the file that l has read, or another one to which a link leads
// from its path, is another one than then, and whenever it changes again, until ctx is done. It looks once in every period, and
// waits until the file is the same twice: one that is being written is not read by half.
// A look is one system call, which works on every file system, also through the links by
// which ConfigMaps are mounted.
func (l *Loader) Watch(ctx context.Context, every time.Duration, changed func()) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	read := l.seen
	last := read
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := stat(l.path)
		if sameFile(now, last) && !sameFile(now, read) {
			read = now
			changed()
		}
		last = now
	}
}

// stat returns nil for a file that is not there, which is another state.
func stat(path string) os.FileInfo {
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	return info
}

func sameFile(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}
