// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// maxManifest is how many bytes of a file are read.
const maxManifest = 256 << 20

// RunManifests keeps s equal to the manifests in dir until ctx is done: Services,
// EndpointSlices, Nodes, Pods (their weights) and Lists of them in *.yaml, *.yml and *.json files, not in
// subdirectories. What a file cannot say it keeps. It returns an error if dir is
// not there at the start; if it goes away later, everything stays as it is.
func RunManifests(ctx context.Context, dir string, s *Store, log *slog.Logger) error {
	m := newManifests(dir, s, log)
	w, err := newWatcher(m)
	if err != nil {
		return fmt.Errorf("manifest directory %s: %w", dir, err)
	}
	defer w.close()
	return w.run(ctx)
}

// manifests is a directory and what its files said when they were last read.
type manifests struct {
	dir     string
	store   *Store
	log     *slog.Logger
	files   map[string]*manifest
	defined map[objectKey][]string // the files that define an object, sorted
	applied map[objectKey]any      // what the Store has
	ignored map[string]bool        // the kinds that were logged
}

// manifest is one file.
type manifest struct {
	contents
	info os.FileInfo // nil: read again
}

func newManifests(dir string, s *Store, log *slog.Logger) *manifests {
	return &manifests{
		dir: dir, store: s, log: log,
		files:   map[string]*manifest{},
		defined: map[objectKey][]string{},
		applied: map[objectKey]any{},
		ignored: map[string]bool{},
	}
}

func isManifest(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return !strings.HasPrefix(name, ".")
	}
	return false
}

// expire makes the next scan read name again, whatever its time and size say.
func (m *manifests) expire(name string) {
	if f := m.files[name]; f != nil {
		f.info = nil
	}
}

// expireAll is expire for every file.
func (m *manifests) expireAll() {
	for name := range m.files {
		m.expire(name)
	}
}

// scan makes the Store equal to the directory. It reads only files that differ
// from what they were by name, inode, time or size. An error means that the
// directory cannot be listed; nothing was changed then.
func (m *manifests) scan() error {
	listed, err := os.ReadDir(m.dir)
	if err != nil {
		err = fmt.Errorf("%w: everything stays as it was", err)
		m.report(m.dir, []Problem{{Kind: KindManifest, Object: lb.Object{Name: m.dir}, Reason: ReasonUnreadable, Err: err}})
		return err
	}
	m.report(m.dir, nil)
	touched := map[objectKey]bool{}
	present := map[string]bool{}
	for _, entry := range listed {
		if name := entry.Name(); isManifest(name) && m.read(name, touched) {
			present[name] = true
		}
	}
	for name := range m.files {
		if !present[name] {
			m.set(name, nil, touched)
			m.report(name, nil)
		}
	}
	m.apply(touched)
	return nil
}

// read reads a file if it changed. It returns false if there is no such file.
func (m *manifests) read(name string, touched map[objectKey]bool) bool {
	path := filepath.Join(m.dir, name)
	info, err := os.Stat(path) // follows links: a ConfigMap's files are some
	if errors.Is(err, os.ErrNotExist) || err == nil && info.IsDir() {
		return false
	}
	old := m.files[name]
	if err == nil && old != nil && old.info != nil && unchanged(old.info, info) {
		return true
	}
	var data []byte
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = errors.New("is not a regular file")
	case info.Size() > maxManifest:
		err = fmt.Errorf("has %d bytes, more than %d", info.Size(), maxManifest)
	default:
		data, err = os.ReadFile(path)
	}
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	var before *contents
	if old != nil {
		before = &old.contents
	}
	next := &manifest{info: info}
	if err != nil {
		next.info = nil
		next.p = &problems{kind: KindManifest, object: lb.Object{Name: name}}
		if before != nil {
			next.objects = before.objects
		}
		next.p.add("", ReasonUnreadable, err)
	} else {
		next.contents = *decode(name, data, before, m.store.options())
	}
	m.set(name, next, touched)
	return true
}

func unchanged(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// set replaces what a file says; next is nil when it is gone. It adds the objects
// that the file defined or defines to touched.
func (m *manifests) set(name string, next *manifest, touched map[objectKey]bool) {
	if old := m.files[name]; old != nil {
		for key := range old.objects {
			touched[key] = true
			m.defined[key] = slices.DeleteFunc(m.defined[key], func(f string) bool { return f == name })
		}
	}
	if next == nil {
		delete(m.files, name)
		return
	}
	m.files[name] = next
	for key := range next.objects {
		touched[key] = true
		i, _ := slices.BinarySearch(m.defined[key], name)
		m.defined[key] = slices.Insert(m.defined[key], i, name)
	}
	for _, kind := range next.ignored {
		if !m.ignored[kind] {
			m.ignored[kind] = true
			m.log.Info("kind ignored in manifests", "kind", kind, "file", name)
		}
	}
	m.report(name, m.problems(name))
}

// apply brings the touched objects to the Store: of several files that define one,
// the first by name is right, and the others are told.
func (m *manifests) apply(touched map[objectKey]bool) {
	told := map[string]bool{}
	m.store.locked(func() {
		for key := range touched {
			files := m.defined[key]
			for _, name := range files {
				told[name] = true
			}
			var obj any
			if len(files) > 0 {
				obj = m.files[files[0]].objects[key]
			} else {
				delete(m.defined, key)
			}
			m.change(key, obj)
		}
	})
	for _, name := range slices.Sorted(maps.Keys(told)) {
		m.report(name, m.problems(name))
	}
}

// change makes obj the object of the given name; nil deletes it. The Store's lock
// is held.
func (m *manifests) change(key objectKey, obj any) {
	if m.applied[key] == obj {
		return
	}
	m.applied[key] = obj
	switch obj := obj.(type) {
	case *service:
		m.store.putService(obj)
	case *slice:
		m.store.putSlice(obj)
	case *node:
		m.store.putNode(obj)
	case *weighed:
		m.store.putPod(obj)
	case nil:
		delete(m.applied, key)
		switch key.kind {
		case KindService:
			m.store.dropService(key.obj)
		case KindEndpointSlice:
			m.store.dropSlice(key.obj)
		case KindNode:
			m.store.putNode(newNode(key.obj.Name))
		case KindPod:
			m.store.dropPod(key.obj)
		}
	}
}

// problems returns what is wrong with a file: in itself, and what others define.
func (m *manifests) problems(name string) []Problem {
	f := m.files[name]
	ps := slices.Clip(f.p.list())
	for key := range f.objects {
		if first := m.defined[key][0]; first != name {
			err := fmt.Errorf("is defined by %s already: this one is ignored", first)
			ps = append(ps, Problem{Kind: KindManifest, Object: f.p.object, Field: key.String(), Reason: ReasonDuplicateObject, Err: err})
		}
	}
	slices.SortStableFunc(ps, compareProblems)
	return ps
}

func (m *manifests) report(name string, ps []Problem) {
	m.store.locked(func() { m.store.setProblems(owner{KindManifest, lb.Object{Name: name}}, ps) })
}
