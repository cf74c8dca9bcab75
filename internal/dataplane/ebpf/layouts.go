// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// removeOldLayouts takes over what another version of lbproxy left, and removes it. Its
// programs run before ours and serve with what it knew last, so that there is no gap until
// ours know everything; that is when this is called. An agent that is killed meanwhile is
// followed by one that does it again.
func (d *Dataplane) removeOldLayouts() error {
	layouts, err := filepath.Glob(filepath.Join(filepath.Dir(d.maps.dir), "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range layouts {
		if dir != d.maps.dir {
			errs = append(errs, d.replaceLayout(dir))
		}
	}
	return errors.Join(errs...)
}

// replaceLayout copies the connections and flows that another layout has, which may be
// older or newer, into ours, and removes it. Everything is copied while its programs
// serve, so that the ports of its connections are taken in our table as well. Then its
// frontends go: new connections are ours, and its programs only translate what it has; ours
// see nothing of that. What changed is copied again, before its programs go, and once more
// after that.
func (d *Dataplane) replaceLayout(dir string) error {
	old := openLayout(dir)
	defer old.close()
	c := d.newCopier()
	err := c.copyAll(old, true)
	if err == nil {
		err = old.dropFrontends()
	}
	if err == nil {
		err = d.maps.grace.wait()
	}
	if err == nil {
		err = c.copyAll(old, true)
	}
	if err != nil {
		d.opts.Log.Warn("connections that another layout of lbproxy's tables has start anew", "dir", dir, "error", err)
	}
	if _, err := cleanupLayout(dir); err != nil {
		return err
	}
	d.opts.Log.Info("removed another layout of lbproxy's tables", "dir", dir, "entries-taken-over", c.copied)
	if err == nil {
		_ = c.copyAll(old, false) // what came last is little, and nothing else can be done
	}
	return nil
}

// layoutTables are the tables of another version, whose fields are found by their names. The
// kernel keeps the types of a table with it.
type layoutTables struct {
	dir    string
	tables map[string]*ebpf.Map
}

func openLayout(dir string) *layoutTables {
	return &layoutTables{dir, map[string]*ebpf.Map{}}
}

func (l *layoutTables) close() {
	for _, m := range l.tables {
		m.Close()
	}
}

// table opens one table.
func (l *layoutTables) table(name string) (*ebpf.Map, error) {
	if m := l.tables[name]; m != nil {
		return m, nil
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(l.dir, "maps", name), nil)
	if err != nil {
		return nil, fmt.Errorf("open pinned map %s: %w", name, err)
	}
	l.tables[name] = m
	return m, nil
}

// structsOf returns the types that another version has by the names of ours.
func structsOf(m *ebpf.Map, names ...string) (all []*btf.Struct, err error) {
	h, err := m.Handle()
	if err != nil {
		return nil, fmt.Errorf("types of map %s: %w", mapName(m), err)
	}
	defer h.Close()
	spec, err := h.Spec(nil)
	if err != nil {
		return nil, fmt.Errorf("types of map %s: %w", mapName(m), err)
	}
	for _, name := range names {
		var s *btf.Struct
		if err := spec.TypeByName(name, &s); err != nil {
			return nil, fmt.Errorf("types of map %s: struct %s: %w", mapName(m), name, err)
		}
		all = append(all, s)
	}
	return all, nil
}

// entries are keys or values of a table of another layout.
type entries struct {
	rows [][]byte
	from *btf.Struct
}

// structNames are those of the keys and values that are taken over.
var structNames = map[string][2]string{
	lbMapFrontends: {"frontend_key", "frontend"},
	lbMapConns:     {"tuple", "conn"},
	lbMapUdpFlows:  {"udp_flow_key", "udp_flow"},
}

// read reads a whole table.
func (l *layoutTables) read(name string) (keys, values entries, err error) {
	m, err := l.table(name)
	if err != nil {
		return keys, values, err
	}
	types, err := structsOf(m, structNames[name][0], structNames[name][1])
	if err != nil {
		return keys, values, err
	}
	keys.from, values.from = types[0], types[1]
	ks, vs := rows(m.KeySize()), rows(m.ValueSize())
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, ks.Interface(), vs.Interface(), nil)
		for i := range n {
			keys.rows = append(keys.rows, slices.Clone(ks.Index(i).Bytes()))
			values.rows = append(values.rows, slices.Clone(vs.Index(i).Bytes()))
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return keys, values, nil
		}
		if err != nil {
			return keys, values, fmt.Errorf("read map %s: %w", name, err)
		}
	}
}

// rows is room for a batch of keys or values of a size that is not known before.
func rows(size uint32) reflect.Value {
	return reflect.MakeSlice(reflect.SliceOf(reflect.ArrayOf(int(size), reflect.TypeFor[byte]())), connBatch, connBatch)
}

// dropFrontends removes all frontends. Entries that refuse the ports which a cluster IP has
// not go first: they have no port.
func (l *layoutTables) dropFrontends() error {
	keys, _, err := l.read(lbMapFrontends)
	if err != nil {
		return err
	}
	port, err := keys.part("port", 2)
	if err != nil {
		return err
	}
	for _, refusing := range []bool{true, false} {
		for _, row := range keys.rows {
			if none := row[port] == 0 && row[port+1] == 0; none != refusing {
				continue
			}
			if err := l.tables[lbMapFrontends].Delete(row); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("remove a frontend of %s: %w", l.dir, err)
			}
		}
	}
	return nil
}

// part returns where a field is that has so many bytes.
func (e entries) part(name string, size int) (offset int, err error) {
	for _, m := range e.from.Members {
		if m.Name != name {
			continue
		}
		if n, err := btf.Sizeof(m.Type); err == nil && n == size {
			return int(m.Offset.Bytes()), nil
		}
	}
	return 0, fmt.Errorf("struct %s has no field %s of %d bytes", e.from.Name, name, size)
}

// convert makes a T of a row, field by field. Fields of T that the row has not are zero.
func convert[T any](e entries, fields []fieldOf[T]) ([]T, error) {
	out := make([]T, len(e.rows))
	for _, f := range fields {
		from, err := e.part(f.name, f.size)
		if err != nil {
			return nil, err
		}
		for i, row := range e.rows {
			to := unsafe.Slice((*byte)(unsafe.Pointer(&out[i])), unsafe.Sizeof(out[i]))
			copy(to[f.offset:f.offset+uintptr(f.size)], row[from:from+f.size])
		}
	}
	return out, nil
}

// fieldOf is a field of our T that another layout must have as well, with the same meaning.
type fieldOf[T any] struct {
	name   string // in C
	offset uintptr
	size   int
}
