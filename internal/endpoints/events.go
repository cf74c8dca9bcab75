// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"context"
	"log/slog"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// component is the source of our Events.
const component = "lbproxy"

// maxMessage is how many bytes of a message an Event has. Events of other API groups
// may not have more.
const maxMessage = 1024

// eventQueue is how many Events may wait; more are dropped and logged.
const eventQueue = 1000

// EventReporter is a Reporter that writes Events to the API server. client-go's
// correlator merges and limits them: 25 per object, then one in five minutes.
type EventReporter struct {
	client kubernetes.Interface
	node   string
	log    *slog.Logger
	queue  chan event
}

type event struct {
	kind                 string // KindService or KindNode
	obj                  lb.Object
	typ, reason, message string
}

// NewEventReporter returns a Reporter for the node of the given name. Events wait
// until Run.
func NewEventReporter(client kubernetes.Interface, nodeName string, log *slog.Logger) *EventReporter {
	return &EventReporter{client: client, node: nodeName, log: log, queue: make(chan event, eventQueue)}
}

// ServiceEvent queues an Event on a Service. It never blocks.
func (r *EventReporter) ServiceEvent(obj lb.Object, eventtype, reason, message string) {
	r.add(event{KindService, obj, eventtype, reason, message})
}

// NodeEvent queues an Event on the own Node. It never blocks.
func (r *EventReporter) NodeEvent(eventtype, reason, message string) {
	r.add(event{KindNode, lb.Object{Name: r.node}, eventtype, reason, message})
}

func (r *EventReporter) add(e event) {
	e.message = lb.Shorten(e.message, maxMessage)
	select {
	case r.queue <- e:
	default:
		r.log.Warn("event dropped: too many are waiting", "kind", e.kind, "object", e.obj, "reason", e.reason, "message", e.message)
	}
}

// Run writes queued Events until ctx is done. uid returns the UID of a Service,
// without which kubectl describe does not show the Event; Store.UID is meant.
func (r *EventReporter) Run(ctx context.Context, uid func(lb.Object) string) error {
	b := record.NewBroadcaster()
	defer b.Shutdown()
	b.StartRecordingToSink(&typedv1.EventSinkImpl{Interface: r.client.CoreV1().Events("")})
	rec := b.NewRecorder(scheme.Scheme, v1.EventSource{Component: component, Host: r.node})
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-r.queue:
			rec.Event(e.reference(uid), e.typ, e.reason, e.message)
		}
	}
}

// reference returns the object that e is about. A Node is its own UID in Events, as
// the kubelet and kube-proxy have it.
func (e event) reference(uid func(lb.Object) string) *v1.ObjectReference {
	ref := &v1.ObjectReference{Kind: e.kind, APIVersion: "v1", Namespace: e.obj.Namespace, Name: e.obj.Name}
	if e.kind == KindNode {
		ref.UID = types.UID(e.obj.Name)
	} else {
		ref.UID = types.UID(uid(e.obj))
	}
	return ref
}
