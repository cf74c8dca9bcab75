// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"bytes"
	"fmt"
	"maps"
	"strings"

	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	discoveryv1 "k8s.io/client-go/kubernetes/typed/discovery/v1"
	"k8s.io/client-go/rest"
)

// NewClient returns a client for RunKubernetes, with Options as the Store's. It differs
// from client-go's in what a watch of EndpointSlices hands out: what a Store keeps of
// them, read from the wire without making the objects. A slice takes client-go longer to
// read than a Store to apply.
func NewClient(rc *rest.Config, o Options) (kubernetes.Interface, error) {
	http, err := rest.HTTPClientFor(rc)
	if err != nil {
		return nil, fmt.Errorf("HTTP client: %w", err)
	}
	all, err := kubernetes.NewForConfigAndClient(rc, http)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	own := rest.CopyConfig(rc)
	own.APIPath, own.GroupVersion = "/apis", &discovery.SchemeGroupVersion
	own.NegotiatedSerializer = sliceCodecs{rest.CodecFactoryForGeneratedClient(scheme.Scheme, scheme.Codecs).WithoutConversion(), &o}
	slices, err := rest.RESTClientForConfigAndClient(own, http)
	if err != nil {
		return nil, fmt.Errorf("client for EndpointSlices: %w", err)
	}
	return &client{all, discoveryv1.New(slices)}, nil
}

// client is client-go's with another half for EndpointSlices.
type client struct {
	kubernetes.Interface
	slices discoveryv1.DiscoveryV1Interface
}

// DiscoveryV1 is the half for EndpointSlices.
func (c *client) DiscoveryV1() discoveryv1.DiscoveryV1Interface { return c.slices }

// sliceCodecs reads EndpointSlices its own way.
type sliceCodecs struct {
	runtime.NegotiatedSerializer
	opts *Options
}

// DecoderToVersion returns what reads the objects of one answer.
func (c sliceCodecs) DecoderToVersion(d runtime.Decoder, gv runtime.GroupVersioner) runtime.Decoder {
	return &sliceDecoder{library: c.NegotiatedSerializer.DecoderToVersion(d, gv), opts: c.opts}
}

// sliceDecoder makes a compact of each EndpointSlice that is not in a list. One
// goroutine uses it.
type sliceDecoder struct {
	library runtime.Decoder
	opts    *Options
	reader  sliceReader
}

var sliceKind = discovery.SchemeGroupVersion.WithKind("EndpointSlice")

// Decode returns the object in data. Whatever is not an EndpointSlice in protobuf is left
// to the library.
func (d *sliceDecoder) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	if into == nil {
		if sl, ok := d.slice(data); ok {
			return compactSlice(sl, d.opts), &sliceKind, nil
		}
	}
	obj, kind, err := d.library.Decode(data, defaults, into)
	if sl, ok := obj.(*discovery.EndpointSlice); ok && into == nil && err == nil {
		return compactSlice(sl, d.opts), kind, nil
	}
	return obj, kind, err
}

// protobufMagic begins every object of Kubernetes in protobuf. Then comes an envelope
// that says what it is: runtime.Unknown.
var protobufMagic = []byte("k8s\x00")

// slice reads data if it is an EndpointSlice.
func (d *sliceDecoder) slice(data []byte) (*discovery.EndpointSlice, bool) {
	data, ok := bytes.CutPrefix(data, protobufMagic)
	if !ok {
		return nil, false
	}
	var version, kind, encoding string
	var raw span
	w := wire{rest: span{data, string(data)}} // data is used again when this returns
	for f := (field{}); w.next(&f); {
		switch f.key {
		case asBytes(1):
			t := wire{rest: f.bytes}
			for f := (field{}); t.next(&f); {
				switch f.key {
				case asBytes(1):
					version = f.bytes.text
				case asBytes(2):
					kind = f.bytes.text
				}
			}
			w.bad = w.bad || t.bad
		case asBytes(2):
			raw = f.bytes
		case asBytes(3):
			encoding = f.bytes.text
		}
	}
	if w.bad || encoding != "" || kind != sliceKind.Kind || version != discovery.SchemeGroupVersion.String() {
		return nil, false
	}
	return d.reader.read(raw)
}

// compactSlice returns what is kept of sl, with what a reflector asks for.
func compactSlice(sl *discovery.EndpointSlice, o *Options) *compact {
	parsed := parseSlice(sl, o)
	c := &compact{ObjectMeta: noMeta, namespace: parsed.obj.Namespace, name: parsed.obj.Name, parsed: parsed}
	c.version = strings.Clone(sl.ResourceVersion)
	if sl.Annotations[metav1.InitialEventsAnnotationKey] != "" { // a bookmark
		c.marks = maps.Clone(sl.Annotations)
	}
	return c
}
