// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// When a directory is read. A change is read when no other followed for quiet, and
// at the latest after patience: a file that is being written should be complete.
const (
	quiet    = 10 * time.Millisecond
	patience = 50 * time.Millisecond
	rescan   = 30 * time.Second // should a notification get lost
	retry    = time.Second      // while the directory is not there
)

// watcher tells manifests when to scan.
type watcher struct {
	m       *manifests
	notify  *fsnotify.Watcher
	watched os.FileInfo // the directory that notify watches; nil: none
}

// newWatcher fails if the directory cannot be watched.
func newWatcher(m *manifests) (*watcher, error) {
	info, err := os.Stat(m.dir)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is not a directory", m.dir)
	}
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	w := &watcher{m: m, notify: notify}
	if err := w.attach(); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *watcher) close() { _ = w.notify.Close() } // nothing is left to be done about it

// attach watches the directory that is at the path now. Another one may have been
// renamed to it, or a link changed.
func (w *watcher) attach() error {
	info, err := os.Stat(w.m.dir)
	if err != nil {
		w.watched = nil
		return fmt.Errorf("watch: %w", err)
	}
	if w.watched != nil && os.SameFile(info, w.watched) {
		return nil
	}
	_ = w.notify.Remove(w.m.dir) // it may be gone, and with it the watch
	if err := w.notify.Add(w.m.dir); err != nil {
		w.watched = nil
		return fmt.Errorf("watch: %w", err)
	}
	w.watched = info
	return nil
}

// run scans now and whenever something changed, until ctx is done.
func (w *watcher) run(ctx context.Context) error {
	if err := w.m.scan(); err != nil {
		return fmt.Errorf("manifest directory %s: %w", w.m.dir, err)
	}
	w.m.store.MarkSynced(Manifests)
	next := time.NewTimer(rescan)
	defer next.Stop()
	var latest time.Time // when to scan in any case; zero: nothing has changed
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev := <-w.notify.Events:
			w.mark(ev)
			if latest.IsZero() {
				latest = time.Now().Add(patience)
			}
			next.Reset(min(quiet, time.Until(latest)))
		case err := <-w.notify.Errors: // an overflow: anything may have changed
			w.m.log.Debug("manifest notification failed", "dir", w.m.dir, "error", err)
			next.Reset(quiet)
		case <-w.m.store.relist:
			w.m.expireAll()
			next.Reset(0)
		case <-next.C:
			latest = time.Time{}
			next.Reset(w.scan())
		}
	}
}

// scan scans and returns when to do so without being told.
func (w *watcher) scan() time.Duration {
	attached := w.attach()
	if err := w.m.scan(); err != nil { // which reports it
		w.watched = nil
		return retry
	}
	if attached != nil {
		w.m.log.Warn("manifest directory is read every second", "dir", w.m.dir, "error", attached)
		return retry
	}
	return rescan
}

// mark makes the next scan read the file of ev, whatever its time and size say.
func (w *watcher) mark(ev fsnotify.Event) {
	w.m.expire(filepath.Base(ev.Name))
	if filepath.Clean(ev.Name) == filepath.Clean(w.m.dir) {
		w.watched = nil // the directory itself was moved or removed
	}
}
