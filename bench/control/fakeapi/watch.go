// SPDX-License-Identifier: Apache-2.0

package fakeapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
)

// errExpired says that a watch cannot begin where it was asked to.
var errExpired = errors.New("the resource version is not the present one, and there is no history")

// query is what a list or a watch asks for.
type query struct {
	form   form
	labels labels.Selector
	fields fields.Selector
}

func (q *query) selects(it *item) bool {
	return q.labels.Matches(it.labels) && q.fields.Matches(it.fields)
}

// watch is one client's stream of events.
type watch struct {
	query
	mu     sync.Mutex
	w      http.ResponseWriter
	flush  func() error
	closed bool // the handler has returned, or a write failed
}

// write sends frames, and gives up on a client that does not take them.
func (w *watch) write(frames []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	if _, err := w.w.Write(frames); err != nil || w.flush() != nil {
		w.closed = true
	}
}

// isEvents tells whether path is where events of a namespace are posted.
func isEvents(path string) bool {
	return strings.HasSuffix(path, "/events") &&
		(strings.HasPrefix(path, "/api/v1/namespaces/") || strings.HasPrefix(path, "/apis/events.k8s.io/v1/namespaces/"))
}

// get answers a list or a watch.
func (c *collection) get(w http.ResponseWriter, r *http.Request) {
	form, ok := formOf(r)
	if !ok {
		fail(w, http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable, "only "+contentType+" is served")
		return
	}
	args := r.URL.Query()
	byLabel, err := labels.Parse(args.Get("labelSelector"))
	if err != nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	byField, err := fields.ParseSelector(args.Get("fieldSelector"))
	if err != nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	q := query{form, byLabel, byField}
	if watch, _ := strconv.ParseBool(args.Get("watch")); watch {
		c.watch(w, r, q)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	body, err := c.list(form, c.selected(&q))
	if err != nil {
		fail(w, http.StatusInternalServerError, metav1.StatusReasonInternalError, err.Error())
		return
	}
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write(body) // a client that goes away hears nothing anyway
	c.listed = time.Now()
}

// selected returns what q asks for, in the order in which it came. c.mu is held.
func (c *collection) selected(q *query) []*item {
	items := make([]*item, 0, len(c.order))
	for _, it := range c.order {
		if q.selects(it) {
			items = append(items, it)
		}
	}
	return items
}

// watch streams events until the client goes away, or for as long as it asked.
func (c *collection) watch(rw http.ResponseWriter, r *http.Request, q query) {
	ctx := r.Context()
	if n, err := strconv.Atoi(r.URL.Query().Get("timeoutSeconds")); err == nil && n > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(n)*time.Second)
		defer cancel()
	}
	w := &watch{query: q, w: rw, flush: http.NewResponseController(rw).Flush}
	if err := c.begin(w, r.URL.Query()); err != nil {
		fail(rw, http.StatusGone, metav1.StatusReasonExpired, fmt.Sprintf("%s: %v", c.path, err))
		return
	}
	<-ctx.Done()
	c.mu.Lock()
	delete(c.watches, w)
	c.mu.Unlock()
	w.mu.Lock() // who holds it writes to what is gone when this returns
	w.closed = true
	w.mu.Unlock()
}

// begin writes what a watch begins with, and enters it for what follows.
func (c *collection) begin(w *watch, args url.Values) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	all, _ := strconv.ParseBool(args.Get("sendInitialEvents"))
	if from := args.Get("resourceVersion"); !all && from != fmt.Sprint(c.revision) {
		return fmt.Errorf("watch from %q at %d: %w", from, c.revision, errExpired)
	}
	w.w.Header().Set("Content-Type", contentType+";stream=watch")
	var frames []byte
	if all {
		for _, it := range c.selected(&w.query) {
			frame, err := it.frame(eventAdded, w.form)
			if err != nil {
				return err
			}
			frames = append(frames, frame...)
		}
		end, err := c.bookmark(w.form)
		if err != nil {
			return err
		}
		frames = append(frames, end...)
	}
	w.write(frames)
	if all {
		c.listed = time.Now()
	}
	c.watches[w] = struct{}{}
	return nil
}
