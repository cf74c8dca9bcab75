// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// full is a slice that says everything there is to say.
func full() *discovery.EndpointSlice {
	sl := testSlice("web", "web-1", "10.0.0.3 zone=a zone=b", "10.0.0.1 notready remote", "10.0.0.2")
	sl.UID, sl.ResourceVersion, sl.Generation = "0123-4567", "89", 3
	sl.CreationTimestamp = metav1.Now()
	sl.Annotations = map[string]string{keyWeight: "7", v1.EndpointsLastChangeTriggerTime: "2026-01-02T03:04:05Z"}
	sl.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "m", FieldsV1: metav1.NewFieldsV1("{}")}}
	sl.OwnerReferences = []metav1.OwnerReference{{Kind: KindService, Name: "web", Controller: ptr(true)}}
	for i := range sl.Endpoints {
		ep := &sl.Endpoints[i]
		ep.Hostname, ep.DeprecatedTopology = ptr("h"), map[string]string{"a": "b"}
		ep.TargetRef = &v1.ObjectReference{Kind: KindPod, Namespace: "default", Name: fmt.Sprint("pod-", i), UID: "u", FieldPath: "f"}
		ep.Conditions.Serving, ep.Conditions.Terminating = ptr(i != 1), ptr(i == 2)
		ep.Addresses = append(ep.Addresses, "10.9.9.9")
	}
	sl.Endpoints[2].Hints = &discovery.EndpointHints{ForNodes: []discovery.ForNode{{Name: thisNode}, {Name: "x"}}}
	sl.Ports = append(sl.Ports, discovery.EndpointPort{Name: ptr("dns"), Protocol: ptr(v1.ProtocolUDP), Port: ptr(int32(53)), AppProtocol: ptr("x")},
		discovery.EndpointPort{}, discovery.EndpointPort{Name: ptr(""), Port: ptr(int32(-1))})
	return sl
}

// wireSlices are slices of all kinds, and what is wrong with them.
func wireSlices() []*discovery.EndpointSlice {
	headless, nobodys, odd := full(), full(), full()
	headless.Labels[labelHeadless] = ""
	nobodys.Labels = nil
	odd.AddressType, odd.Annotations[keyWeight] = discovery.AddressTypeIPv6, "heavy"
	odd.Endpoints[0].Addresses[0], odd.Endpoints[1].Addresses = "fd00::1", nil
	odd.Endpoints[2].TargetRef, odd.Endpoints[2].NodeName = nil, ptr("")
	return append(slices.Clone(wideSlices(300, 100)), full(), headless, nobodys, odd, testSlice("web", "web-2"), &discovery.EndpointSlice{})
}

func marshal(t testing.TB, sl *discovery.EndpointSlice) []byte {
	t.Helper()
	raw, err := sl.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// asRead compares what the reader makes of raw with what the library makes of it.
func asRead(t *testing.T, r *sliceReader, raw []byte) {
	t.Helper()
	var theirs discovery.EndpointSlice
	if theirs.Unmarshal(raw) != nil {
		return
	}
	ours, ok := r.read(span{raw, string(raw)})
	if !ok {
		return // it is left to the library
	}
	o := testOptions()
	got, want := compactSlice(ours, &o), compactSlice(&theirs, &o)
	if !reflect.DeepEqual(got.parsed, want.parsed) || got.version != want.version || got.name != want.name || got.namespace != want.namespace {
		t.Errorf("got %+v %q, want %+v %q", got.parsed, got.version, want.parsed, want.version)
	}
	if !reflect.DeepEqual(got.marks, want.marks) {
		t.Errorf("marks: got %v, want %v", got.marks, want.marks)
	}
}

func TestWireReadsWhatTheLibraryReads(t *testing.T) {
	var r sliceReader // the same for all: nothing of one may be left in the next
	sls := wireSlices()
	for _, i := range rand.New(rand.NewPCG(7, 8)).Perm(len(sls)) {
		raw := marshal(t, sls[i])
		if _, ok := r.read(span{raw, string(raw)}); !ok {
			t.Fatalf("%s is not read", sls[i].Name)
		}
		asRead(t, &r, raw)
	}
}

func TestWireDoesNotReadWhatIsCutOff(t *testing.T) {
	var r sliceReader
	raw := marshal(t, full())
	for n := range len(raw) {
		var sl discovery.EndpointSlice
		_, ok := r.read(span{raw[:n], string(raw[:n])})
		if lib := sl.Unmarshal(raw[:n]); ok != (lib == nil) {
			t.Errorf("the first %d bytes: read %v, the library says %v", n, ok, lib)
		}
	}
}

func FuzzWire(f *testing.F) {
	for _, sl := range wireSlices()[2:] {
		f.Add(marshal(f, sl))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var r sliceReader
		asRead(t, &r, raw)
	})
}

// decoded is what a watch hands out, of a client that asked for the media type.
func decoded(t testing.TB, media string, obj runtime.Object) (runtime.Object, error) {
	t.Helper()
	o := testOptions()
	codecs := sliceCodecs{rest.CodecFactoryForGeneratedClient(scheme.Scheme, scheme.Codecs).WithoutConversion(), &o}
	info, ok := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), media)
	if !ok {
		t.Fatalf("no %s", media)
	}
	gv := discovery.SchemeGroupVersion
	if _, ok := obj.(*metav1.Status); ok {
		gv = v1.SchemeGroupVersion
	}
	raw, err := runtime.Encode(scheme.Codecs.EncoderForVersion(info.Serializer, gv), obj)
	if err != nil {
		t.Fatal(err)
	}
	return runtime.Decode(codecs.DecoderToVersion(info.Serializer, discovery.SchemeGroupVersion), raw)
}

func TestWatchesHandOutCompacts(t *testing.T) {
	bookmark := &discovery.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		ResourceVersion: "5", Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"},
	}}
	for _, media := range []string{runtime.ContentTypeProtobuf, runtime.ContentTypeJSON} {
		for _, sl := range []*discovery.EndpointSlice{full(), bookmark} {
			sl.CreationTimestamp = metav1.Time{Time: time.Unix(1, 0)}
			o := testOptions()
			got, err := decoded(t, media, sl)
			if want := compactSlice(sl, &o); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s: got %+v %v, want %+v", media, got, err, want)
			}
		}
		got, err := decoded(t, media, &metav1.Status{Reason: metav1.StatusReasonExpired})
		if status, ok := got.(*metav1.Status); !ok || status.Reason != metav1.StatusReasonExpired {
			t.Errorf("%s: a Status is %+v %v", media, got, err)
		}
	}
}

// BenchmarkWire is reading one slice of a watch: ours, and the library's with what
// follows.
func BenchmarkWire(b *testing.B) {
	o := testOptions()
	for _, size := range []int{10, 100} {
		raw := marshal(b, wideSlices(size, size)[0])
		b.Run(fmt.Sprintf("own/%d", size), func(b *testing.B) {
			var r sliceReader
			b.ReportAllocs()
			for b.Loop() {
				sl, _ := r.read(span{raw, string(raw)})
				compactSlice(sl, &o)
			}
		})
		b.Run(fmt.Sprintf("library/%d", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var sl discovery.EndpointSlice
				if err := sl.Unmarshal(raw); err != nil {
					b.Fatal(err)
				}
				compactSlice(&sl, &o)
			}
		})
	}
}
