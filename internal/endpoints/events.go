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
	select {
	case r.queue <- event{obj, eventtype, reason, message}:
	default:
		r.log.Warn("event dropped: too many are waiting", "service", obj, "reason", reason, "message", message)
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
			rec.Event(&v1.ObjectReference{
				Kind:       KindService,
				APIVersion: "v1",
				Namespace:  e.obj.Namespace,
				Name:       e.obj.Name,
				UID:        types.UID(uid(e.obj)),
			}, e.typ, e.reason, e.message)
		}
	}
}
