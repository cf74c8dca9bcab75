// SPDX-License-Identifier: Apache-2.0

package fakeapi

import (
	"encoding/binary"
	"fmt"
	"net/http"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// contentType is of everything the server says.
const contentType = runtime.ContentTypeProtobuf

// The types of events.
const (
	eventAdded    = "ADDED"
	eventModified = "MODIFIED"
	eventDeleted  = "DELETED"
	eventBookmark = "BOOKMARK"
)

// form is how much of an object a client wants.
type form int

const (
	whole   form = iota
	partial      // PartialObjectMetadata
)

// metaVersion is of PartialObjectMetadata.
const metaVersion = "meta.k8s.io/v1"

// formOf returns what the header Accept asks for; ok is false if that is not
// protobuf.
func formOf(r *http.Request) (f form, ok bool) {
	first, _, _ := strings.Cut(r.Header.Get("Accept"), ",")
	if !strings.HasPrefix(first, contentType) {
		return whole, false
	}
	if strings.Contains(first, ";as=PartialObjectMetadata") {
		return partial, true
	}
	return whole, true
}

type marshaler interface{ Marshal() ([]byte, error) }

// magic begins every object of Kubernetes in protobuf.
var magic = []byte{'k', '8', 's', 0}

// encode returns m in the envelope that says what it is.
func encode(version, kind string, m marshaler) ([]byte, error) {
	raw, err := m.Marshal()
	if err != nil {
		return nil, err
	}
	return envelope(version, kind, raw)
}

func envelope(version, kind string, raw []byte) ([]byte, error) {
	u := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: version, Kind: kind}, Raw: raw}
	out, err := u.Marshal()
	return append(append([]byte(nil), magic...), out...), err
}

// encoded returns the object in the form f.
func (it *item) encoded(f form) ([]byte, error) {
	if it.forms[f] == nil { // whole is there from the start
		raw, err := encode(metaVersion, "PartialObjectMetadata", &metav1.PartialObjectMetadata{ObjectMeta: it.meta})
		if err != nil {
			return nil, fmt.Errorf("metadata of %s: %w", it.meta.Name, err)
		}
		it.forms[f] = raw
	}
	return it.forms[f], nil
}

// frame returns one event of a watch.
func (it *item) frame(event string, f form) ([]byte, error) {
	raw, err := it.encoded(f)
	if err != nil {
		return nil, err
	}
	return frameOf(event, raw)
}

// frameOf puts the length in front of an event, as streams of protobuf have it.
func frameOf(event string, object []byte) ([]byte, error) {
	ev := metav1.WatchEvent{Type: event, Object: runtime.RawExtension{Raw: object}}
	out, err := ev.Marshal()
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(out))), out...), err
}

// bookmark returns the event that ends a list which was sent as a watch.
func (c *collection) bookmark(f form) ([]byte, error) {
	obj, version, kind := c.blank(), c.version, c.kind
	if f == partial {
		obj, version, kind = &metav1.PartialObjectMetadata{}, metaVersion, "PartialObjectMetadata"
	}
	obj.SetResourceVersion(fmt.Sprint(c.revision))
	obj.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	raw, err := encode(version, kind, obj)
	if err != nil {
		return nil, err
	}
	return frameOf(eventBookmark, raw)
}

// list returns a list of items. Every list of Kubernetes has its metadata in field
// 1 and its items in field 2, without envelopes.
func (c *collection) list(f form, items []*item) ([]byte, error) {
	meta := metav1.ListMeta{ResourceVersion: fmt.Sprint(c.revision)}
	head, err := meta.Marshal()
	if err != nil {
		return nil, err
	}
	out := field(nil, 1, head)
	for _, it := range items {
		raw, err := it.encoded(f)
		if err != nil {
			return nil, err
		}
		var u runtime.Unknown
		if err := u.Unmarshal(raw[len(magic):]); err != nil {
			return nil, err
		}
		out = field(out, 2, u.Raw)
	}
	if f == partial {
		return envelope(metaVersion, "PartialObjectMetadataList", out)
	}
	return envelope(c.version, c.kind+"List", out)
}

// field appends a field of bytes.
func field(out []byte, number byte, value []byte) []byte {
	out = append(out, number<<3|2)
	out = binary.AppendUvarint(out, uint64(len(value)))
	return append(out, value...)
}

// fail answers with a Status.
func fail(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	status := metav1.Status{Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message}
	raw, err := encode("v1", "Status", &status)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(code)
	_, _ = w.Write(raw) // a client that goes away hears nothing anyway
}
