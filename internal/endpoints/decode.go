// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	k8sjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// objectKey names an object of a manifest.
type objectKey struct {
	kind string
	obj  lb.Object
}

// String returns kind and name.
func (k objectKey) String() string {
	if k.obj.Namespace == "" {
		return k.kind + " " + k.obj.Name
	}
	return k.kind + " " + k.obj.String()
}

// contents is what one manifest file says.
type contents struct {
	objects map[objectKey]any // *service, *slice, *node, or *weighed for a Pod with a weight
	ignored []string          // kinds that are not for us
	p       *problems
}

// strict reads an object and names the fields it does not know.
var strict = k8sjson.NewSerializerWithOptions(k8sjson.DefaultMetaFactory, scheme.Scheme, scheme.Scheme,
	k8sjson.SerializerOptions{Strict: true})

// decoder reads one manifest file.
type decoder struct {
	opts *Options
	contents
	failed    []objectKey // documents that have a name, but are malformed
	anonymous bool        // some document is so malformed that nobody knows what it is
}

// decode reads data, the contents of the file called name; before is what the file
// said until now, or nil. A malformed document keeps what it last said: by its
// object's name where that can be read. Where it cannot, or where the file cannot
// be split into documents, nothing that the file said before is forgotten. A
// Service with values that no API server would take stays what it was.
func decode(name string, data []byte, before *contents, o *Options) *contents {
	d := &decoder{opts: o, contents: contents{
		objects: map[objectKey]any{},
		p:       &problems{kind: KindManifest, object: lb.Object{Name: name}},
	}}
	docs, err := split(name, data)
	if err != nil {
		d.p.add("", ReasonMalformed, fmt.Errorf("%w: the file keeps what it last contained", err))
		d.anonymous = true
	}
	for i, doc := range docs {
		d.document(fmt.Sprintf("document %d", i+1), doc)
	}
	if before != nil {
		d.retain(before)
	}
	return &d.contents
}

// retain takes over from before what the file says no longer, or in a way that
// cannot be served.
func (d *decoder) retain(before *contents) {
	for key, obj := range before.objects {
		if svc, ok := d.objects[key].(*service); ok && svc.impossible() {
			kept := *obj.(*service)
			kept.problems = svc.problems
			d.objects[key] = &kept
			continue
		}
		if _, replaced := d.objects[key]; !replaced && (d.anonymous || slices.Contains(d.failed, key)) {
			d.objects[key] = obj
		}
	}
}

// split cuts a file into documents. A stream of YAML is cut at its markers, so one
// malformed document does not hide the others; a stream of JSON cannot be.
func split(name string, data []byte) ([][]byte, error) {
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return nil, errors.New("is empty; delete it to delete its objects")
	case !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0:
		return nil, errors.New("is not text")
	case strings.HasSuffix(name, ".json"):
		return splitJSON(data)
	}
	return splitYAML(data), nil
}

func splitJSON(data []byte) (docs [][]byte, err error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	for {
		var doc json.RawMessage
		switch err := dec.Decode(&doc); {
		case errors.Is(err, io.EOF):
			return docs, nil
		case err != nil:
			return nil, fmt.Errorf("document %d: %w", len(docs)+1, err)
		}
		docs = append(docs, doc)
	}
}

func splitYAML(data []byte) (docs [][]byte) {
	start := 0
	for at := 0; at < len(data); {
		end := len(data)
		if nl := bytes.IndexByte(data[at:], '\n'); nl >= 0 {
			end = at + nl + 1
		}
		switch line := data[at:end]; {
		case marker(line, "---"):
			docs = append(docs, data[start:at])
			start = at + len("---") // what follows on the line belongs to the document
		case marker(line, "..."):
			docs = append(docs, data[start:at])
			start = end
		}
		at = end
	}
	return slices.DeleteFunc(append(docs, data[start:]), blank)
}

func marker(line []byte, m string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(m))
	return ok && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

// blank tells whether doc has nothing but comments, directives and white space.
func blank(doc []byte) bool {
	for line := range bytes.Lines(doc) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' && line[0] != '%' {
			return false
		}
	}
	return true
}

// document reads one YAML or JSON document.
func (d *decoder) document(field string, doc []byte) {
	raw, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		duplicate := err // or worse
		if raw, err = yaml.YAMLToJSON(doc); err != nil {
			d.p.add(field, ReasonMalformed, err)
			d.anonymous = true
			return
		}
		d.p.add(field, ReasonUnknownField, duplicate)
	}
	d.object(field, raw, header{}, false)
}

// header is what every object has, and the items of a list.
type header struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"metadata"`
	Items []json.RawMessage `json:"items"`
}

// object reads one object or list from JSON. An item of a typed list need not say
// what it is: typ does.
func (d *decoder) object(field string, raw []byte, typ header, item bool) {
	var head header
	if bytes.Equal(raw, []byte("null")) {
		return
	}
	if err := utiljson.Unmarshal(raw, &head); err != nil {
		d.p.add(field, ReasonMalformed, err)
		d.anonymous = true
		return
	}
	if head.Kind == "" {
		head.Kind, head.APIVersion = typ.Kind, typ.APIVersion
	}
	if kind, list := strings.CutSuffix(head.Kind, "List"); list && !item {
		d.list(field, kind, &head)
		return
	}
	into := blankObject(head.Kind)
	if into == nil {
		d.ignore(field, head.Kind)
		return
	}
	key, err := nameOf(head.Kind, head.Metadata.Namespace, head.Metadata.Name)
	if err != nil {
		d.p.add(field, ReasonMalformed, err)
		d.anonymous = true
		return
	}
	d.body(field, raw, key, head.APIVersion, into)
}

// list reads the items of a List, or of a list of the given kind.
func (d *decoder) list(field, kind string, head *header) {
	typ := header{Kind: kind}
	switch {
	case kind == "": // its items say what they are
	case blankObject(kind) == nil:
		d.ignore(field, head.Kind)
		return
	default:
		typ.APIVersion = head.APIVersion
	}
	for i, raw := range head.Items {
		d.object(fmt.Sprintf("%s, items[%d]", field, i), raw, typ, true)
	}
}

// body reads the object that key names into into.
func (d *decoder) body(field string, raw []byte, key objectKey, version string, into runtime.Object) {
	field += ", " + key.String()
	gvk := kindOf(key.kind)
	if want := gvk.GroupVersion().String(); version != want {
		d.fail(field, key, fmt.Errorf("apiVersion %q: want %s", version, want))
		return
	}
	if key.kind == KindPod {
		d.pod(field, raw, key)
		return
	}
	got, _, err := strict.Decode(raw, &gvk, into)
	unknown, isStrict := runtime.AsStrictDecodingError(err)
	if err == nil && got != into {
		err = errors.New("kind: is set twice")
	}
	if err != nil && !isStrict {
		d.fail(field, key, err)
		return
	}
	if isStrict {
		for _, e := range unknown.Errors() {
			d.p.add(field, ReasonUnknownField, e)
		}
	}
	d.add(field, key, func() any { return d.parse(into, key) })
}

// add makes what parse returns the object that key names.
func (d *decoder) add(field string, key objectKey, parse func() any) {
	if _, dup := d.objects[key]; dup {
		d.p.add(field, ReasonDuplicateObject, errors.New("is defined by an earlier document of this file"))
		return
	}
	d.objects[key] = parse()
}

// pod reads the metadata of a Pod: the rest is not for us to judge.
func (d *decoder) pod(field string, raw []byte, key objectKey) {
	var pod metav1.PartialObjectMetadata
	if err := utiljson.Unmarshal(raw, &pod); err != nil {
		d.fail(field, key, err)
		return
	}
	pod.Namespace = key.obj.Namespace
	if w := parsePod(&pod.ObjectMeta); w.weight != nil {
		d.add(field, key, func() any { return w })
	}
}

func (d *decoder) fail(field string, key objectKey, err error) {
	d.p.add(field, ReasonMalformed, err)
	d.failed = append(d.failed, key)
}

func (d *decoder) ignore(field, kind string) {
	if kind == "" {
		d.p.add(field, ReasonMalformed, errors.New("kind: is not set"))
		d.anonymous = true
		return
	}
	if !slices.Contains(d.ignored, kind) {
		d.ignored = append(d.ignored, kind)
	}
}

func (d *decoder) parse(in runtime.Object, key objectKey) any {
	switch obj := in.(type) {
	case *v1.Service:
		obj.Namespace = key.obj.Namespace
		defaultService(obj)
		return parseService(obj, d.opts)
	case *discovery.EndpointSlice:
		obj.Namespace = key.obj.Namespace
		defaultSlice(obj)
		return parseSlice(obj, d.opts)
	case *v1.Node:
		return parseNode(obj, d.opts)
	}
	return nil // blankObject has made one of the above
}

func blankObject(kind string) runtime.Object {
	switch kind {
	case KindService:
		return &v1.Service{}
	case KindEndpointSlice:
		return &discovery.EndpointSlice{}
	case KindNode:
		return &v1.Node{}
	case KindPod:
		return &v1.Pod{}
	}
	return nil
}

func kindOf(kind string) schema.GroupVersionKind {
	if kind == KindEndpointSlice {
		return discovery.SchemeGroupVersion.WithKind(kind)
	}
	return v1.SchemeGroupVersion.WithKind(kind)
}

// nameOf checks an object's name. Names become parts of other names.
func nameOf(kind, namespace, name string) (objectKey, error) {
	if kind == KindNode {
		namespace = ""
	} else if namespace == "" {
		namespace = v1.NamespaceDefault
	}
	key := objectKey{kind, lb.Object{Namespace: namespace, Name: name}}
	switch {
	case name == "":
		return key, fmt.Errorf("%s: metadata.name: is not set", kind)
	case len(validation.IsDNS1123Subdomain(name)) > 0:
		return key, fmt.Errorf("%s: metadata.name: %q is not a DNS name", kind, name)
	case kind != KindNode && len(validation.IsDNS1123Label(namespace)) > 0:
		return key, fmt.Errorf("%s %s: metadata.namespace: %q is not a DNS label", kind, name, namespace)
	}
	return key, nil
}

// defaultService sets what the API server would set and the rest reads.
func defaultService(s *v1.Service) {
	if s.Spec.Type == "" {
		s.Spec.Type = v1.ServiceTypeClusterIP
	}
	if s.Spec.ClusterIP == "" && len(s.Spec.ClusterIPs) > 0 {
		s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	}
	if len(s.Spec.ClusterIPs) == 0 && s.Spec.ClusterIP != "" {
		s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
	}
	if len(s.Spec.IPFamilies) > 0 {
		return
	}
	for _, ip := range s.Spec.ClusterIPs {
		addr, err := parseIP(ip)
		if err != nil {
			s.Spec.IPFamilies = nil // the addresses say their family themselves
			return
		}
		s.Spec.IPFamilies = append(s.Spec.IPFamilies, v1.IPFamily(lb.FamilyOf(addr).String()))
	}
}

// defaultSlice sets what the API server would set and the rest reads.
func defaultSlice(s *discovery.EndpointSlice) {
	for i := range s.Ports {
		if s.Ports[i].Name == nil {
			s.Ports[i].Name = new(string)
		}
	}
}
