// SPDX-License-Identifier: Apache-2.0

//go:build root

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	algorithm = "lbproxy.io/algorithm"
	proxyName = "service.kubernetes.io/service-proxy-name"
)

// testForbidden runs lbproxy with all rights but those on nodes. It has to say
// so, and must not say that it is ready.
func testForbidden(t *testing.T, s *stage, rules string) {
	text, err := os.ReadFile(rules)
	if err != nil {
		t.Fatal(err)
	}
	less := strings.ReplaceAll(string(text), "resources: [nodes]", "resources: [nothing]")
	less = strings.NewReplacer("name: lbproxy", "name: blind", "namespace: lbproxy", "namespace: blind").Replace(less)
	path := filepath.Join(t.TempDir(), "blind.yaml")
	if err := os.WriteFile(path, []byte(less), 0o600); err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := s.cluster.KubeconfigFor(t.Context(), types.NamespacedName{Namespace: "blind", Name: "blind"}, path)
	if err != nil {
		t.Fatal(err)
	}
	a := s.startAgent(t, "blind", kubeconfig)
	var line string
	s.await(t, "log of what is forbidden", agentTimeout, func() (err error) {
		line, err = a.logged("level=ERROR", "nodes", "is forbidden", "system:serviceaccount:blind:blind")
		return err
	})
	t.Log(line)
	s.awaitHealth(t, http.StatusServiceUnavailable)
	a.stop(t)
}

// testUsedAccess: lbproxy has asked for everything that its ClusterRole allows, and for
// nothing that was refused. The log is the API server's, of all that ran before.
func testUsedAccess(t *testing.T, s *stage, rules string) {
	// An Event that is told again is a patch of the first one.
	svc := s.web(t, "again", "backend1")
	for _, value := range []string{"fastest", "random", "fastest", "random", "fastest"} {
		svc.Annotations = map[string]string{algorithm: value}
		svc = s.put(t, svc)
		s.putPods(t, svc, "backend1")
		s.web(t, "marker-"+value, "backend2") // the agent has seen what came before
	}
	objs, err := s.cluster.Apply(t.Context(), rules)
	if err != nil {
		t.Fatal(err)
	}
	granted, err := Granted(objs)
	if err != nil || len(granted) == 0 {
		t.Fatalf("the ClusterRole grants %d things: %v", len(granted), err)
	}
	s.await(t, "use of everything that is granted", followLimit, func() error {
		asked, refused, err := s.cluster.Asked(lbproxy)
		if err != nil {
			return err
		}
		for a, n := range asked {
			if !granted[a] || refused[a] > 0 {
				t.Fatalf("%s: asked %d times, refused %d times, granted %v", a, n, refused[a], granted[a])
			}
		}
		for a := range granted {
			// A server that streams lists is not asked for one; older ones are.
			streamed := a.Verb == "list" && asked[Access{a.Group, a.Resource, "watch"}] > 0
			if asked[a] == 0 && !streamed {
				return fmt.Errorf("%s: granted, but never asked for", a)
			}
		}
		t.Logf("asked, and nothing was refused: %v", asked)
		return nil
	})
	s.drop(t, svc)
}

// The API server itself has a Service, with which pods call it over TLS.
func testAPIServer(t *testing.T, s *stage) {
	for _, host := range []string{"client2", lab.Outside} {
		cfg := s.cluster.AdminConfig()
		cfg.Host, cfg.Dial = "https://"+net.JoinHostPort(kubernetes4, "443"), dialFrom(s.lab.Host(host))
		client, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		s.await(t, "API server called from "+host, agentTimeout, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := client.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
			return err
		})
	}
}

// event waits for an Event on svc that has the reason and contains each of texts.
func (s *stage) event(t *testing.T, svc *corev1.Service, began time.Time, reason string, texts ...string) {
	t.Helper()
	s.await(t, "event "+reason+" on "+svc.Name, followLimit, func() error {
		list, err := s.cluster.Client().CoreV1().Events(svc.Namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range list.Items {
			if e.InvolvedObject.UID != svc.UID || e.Reason != reason || !containsAll(e.Message, texts) {
				continue
			}
			if e.Type != corev1.EventTypeWarning || e.InvolvedObject.Kind != "Service" || e.Source.Component != lbproxy.Name || e.Source.Host != nodeName {
				t.Errorf("event %+v, want a warning on a Service from lbproxy at %s", e, nodeName)
			}
			t.Logf("%-40s after %4d ms: %s", "event "+reason, time.Since(began).Milliseconds(), e.Message)
			return nil
		}
		return errors.New("no such event")
	})
}

// noEvents fails the test if there is an Event of lbproxy's on svc.
func (s *stage) noEvents(t *testing.T, svc *corev1.Service) {
	t.Helper()
	list, err := s.cluster.Client().CoreV1().Events(svc.Namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list.Items {
		if e.Source.Component == lbproxy.Name && e.InvolvedObject.Name == svc.Name {
			t.Errorf("event on %s: %s %s, want none", svc.Name, e.Reason, e.Message)
		}
	}
}

func testAlgorithm(t *testing.T, s *stage) {
	svc := s.web(t, "turns", "backend1", "backend2", "backend3")
	svc.Annotations = map[string]string{algorithm: "round-robin"}
	began := time.Now()
	svc = s.put(t, svc)
	s.turns(t, "annotation: round-robin", began, 3, atCluster(svc)...)

	svc.Annotations[algorithm] = "fastest"
	began = time.Now()
	svc = s.put(t, svc)
	s.event(t, svc, began, "InvalidAlgorithm", "fastest", algorithm)
	s.turns(t, "invalid annotation keeps it", began, 3, atCluster(svc)...)

	// Other changes of a Service with an invalid annotation are followed.
	began = time.Now()
	s.putPods(t, svc, "backend1", "backend2")
	s.turns(t, "and follows endpoints", began, 2, atCluster(svc)...)
	s.drop(t, svc)
}

// A Service with the label of another proxy is not ours as long as it has it.
func testNotOurs(t *testing.T, s *stage) {
	svc := newWeb("foreign")
	svc.Labels = map[string]string{proxyName: "another"}
	svc = s.put(t, svc)
	s.putPods(t, svc, "backend1")
	at := atCluster(svc)
	s.web(t, "native", "backend1") // the agent has seen what came before
	s.follow(t, time.Now(), expect{"label of another proxy", silent, at})
	svc.Labels = nil
	began := time.Now()
	svc = s.put(t, svc)
	s.follow(t, began, expect{"remove the label", answers("backend1"), at})
	svc.Labels = map[string]string{proxyName: "another"}
	began = time.Now()
	svc = s.put(t, svc)
	s.follow(t, began, expect{"add the label", silent, at})
	s.noEvents(t, svc)
	s.drop(t, svc)
}

// A Service becomes ExternalName, headless and ClusterIP again. Nobody answers at
// addresses that it does not have, and nothing is reported.
func testExternalName(t *testing.T, s *stage) {
	svc := s.web(t, "name", "backend1")
	old := atCluster(svc)
	alias := svc.DeepCopy()
	alias.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"}
	began := time.Now()
	s.put(t, alias)
	s.follow(t, began, expect{"ClusterIP to ExternalName", silent, old})

	headless := newWeb(svc.Name)
	headless.Spec.ClusterIP = corev1.ClusterIPNone
	svc = s.put(t, headless)
	s.putPods(t, svc, "backend1", "backend2")
	s.follow(t, time.Now(), expect{"ExternalName to headless", silent, old})

	if _, err := s.cluster.PutService(t.Context(), alias); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	svc = s.put(t, newWeb(svc.Name))
	s.follow(t, began, expect{"ExternalName to ClusterIP", answers("backend1", "backend2"), atCluster(svc)})
	s.noEvents(t, svc)
	s.drop(t, svc)
}

// Of two Services with the same external IP, the older one has it, whatever
// their names. When it goes, the other one takes over.
func testConflict(t *testing.T, s *stage) {
	external := func(name string) *corev1.Service {
		svc := newWeb(name)
		for _, a := range balanceAddrs {
			svc.Spec.ExternalIPs = append(svc.Spec.ExternalIPs, a.String())
		}
		return svc
	}
	older := s.serve(t, external("older"), "backend1")
	s.follow(t, time.Now(), expect{"external IP", answers("backend1"), atBalance(older)})
	// Their age is in whole seconds; at the same age the name decides.
	s.await(t, "another second", followLimit, func() error {
		if time.Now().Unix() <= older.CreationTimestamp.Unix()+1 {
			return errors.New("not yet")
		}
		return nil
	})
	began := time.Now()
	late := s.serve(t, external("late"), "backend2") // its name is first
	s.event(t, late, began, "FrontendConflict", "default/older", balanceAddrs[0].String())
	s.event(t, late, began, "FrontendConflict", "default/older", balanceAddrs[1].String())
	s.follow(t, began, expect{"the older Service keeps it", answers("backend1"), atBalance(older)})
	s.noEvents(t, older)
	began = time.Now()
	s.drop(t, older)
	s.follow(t, began, expect{"the later one takes over", answers("backend2"), atBalance(late)})
	s.drop(t, late)
}
