// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// separator stands between the documents of a YAML file.
const separator = "\n---\n"

// Annotations that the demo reads. The last one, on an EndpointSlice, is its own.
const (
	algorithmKey = "lbproxy.io/algorithm"
	hashKeyKey   = "lbproxy.io/hash-key"
	prefixKey    = "lbproxy.io/ip-hash-prefix"
	signalKey    = "lbproxy.io/least-time"
	delayKey     = "demo/answers-after"
)

// cluster is what the manifests describe. The demo reads them by itself and not
// with internal/endpoints: one reading checks the other.
type cluster struct {
	services []*service
	pods     []lab.PodSpec
	weights  weights
}

// manifest is a document of which all that the demo reads are the metadata.
type manifest struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
}

// service is one Service with the endpoints of its slices.
type service struct {
	name        string // namespace/name
	algorithm   string
	annotations map[string]string
	showcase    bool // it shows its algorithm
	spec        corev1.ServiceSpec
	ingress     []corev1.LoadBalancerIngress
	endpoints   []endpoint
}

// endpoint is one address and port at which a pod should answer.
type endpoint struct {
	pod, node   string
	addr        netip.AddrPort
	port        string // the name of the Service port
	proto       string // lab.TCP or lab.UDP
	ready       bool
	terminating bool // but still serving
	weight      int
	delay       time.Duration // before the pod's first byte
}

// load reads every Service and EndpointSlice of a directory.
func load(dir string) (*cluster, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		return nil, errors.Join(fmt.Errorf("manifests: no *.yaml in %s", dir), err)
	}
	c, endpoints := &cluster{weights: weights{}}, map[string][]*discovery.EndpointSlice{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("manifests: %w", err)
		}
		for doc := range strings.SplitSeq(string(text), separator) {
			if err := c.add([]byte(doc), endpoints); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	for _, s := range c.services {
		for _, slice := range endpoints[s.name] {
			if err := s.addSlice(slice, c.weights); err != nil {
				return nil, fmt.Errorf("endpoint slice %s: %w", slice.Name, err)
			}
		}
	}
	slices.SortFunc(c.services, func(a, b *service) int {
		return cmp.Or(-cmp.Compare(len(a.frontends()), len(b.frontends())), cmp.Compare(a.name, b.name))
	})
	return c, c.findPods()
}

// add parses one document. Kinds that the demo does not know are skipped.
func (c *cluster) add(doc []byte, endpoints map[string][]*discovery.EndpointSlice) error {
	var head manifest
	if err := yaml.Unmarshal(doc, &head); err != nil {
		return err
	}
	switch head.Kind {
	case "Pod":
		return c.weights.add("Pod "+head.Namespace+"/"+head.Name, head.Labels)
	case "Node":
		return c.weights.add("Node "+head.Name, head.Annotations)
	case "Service":
		var s corev1.Service
		if err := yaml.UnmarshalStrict(doc, &s); err != nil {
			return err
		}
		if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP || len(s.Spec.LoadBalancerSourceRanges) > 0 {
			return fmt.Errorf("service %s: the demo knows no session affinity and no source ranges", s.Name)
		}
		c.services = append(c.services, &service{
			name:        s.Namespace + "/" + s.Name,
			algorithm:   cmp.Or(s.Annotations[algorithmKey], "random"),
			annotations: s.Annotations,
			showcase:    s.Labels["app.kubernetes.io/part-of"] == "algorithms",
			spec:        s.Spec,
			ingress:     s.Status.LoadBalancer.Ingress,
		})
	case "EndpointSlice":
		var s discovery.EndpointSlice
		if err := yaml.UnmarshalStrict(doc, &s); err != nil {
			return err
		}
		owner := s.Namespace + "/" + s.Labels[discovery.LabelServiceName]
		endpoints[owner] = append(endpoints[owner], &s)
	}
	return nil
}

func (s *service) addSlice(slice *discovery.EndpointSlice, ws weights) error {
	delay, err := time.ParseDuration(cmp.Or(slice.Annotations[delayKey], "0s"))
	if err != nil {
		return fmt.Errorf("annotation %s: %w", delayKey, err)
	}
	if delay >= resent {
		return fmt.Errorf("annotation %s: %s or more looks like a lost packet", delayKey, resent)
	}
	for _, p := range slice.Ports {
		if p.Name == nil || p.Port == nil {
			return errors.New("a port has no name or no number")
		}
		for _, e := range slice.Endpoints {
			addr, err := netip.ParseAddr(cmp.Or(slices.Concat(e.Addresses, []string{""})...))
			if err != nil {
				return err
			}
			if e.TargetRef == nil || e.TargetRef.Name == "" || e.NodeName == nil {
				return fmt.Errorf("endpoint %s: the demo needs targetRef.name and nodeName, to make the pod", addr)
			}
			if e.Hints != nil {
				return fmt.Errorf("endpoint %s: the demo knows no topology hints", addr)
			}
			weight, err := ws.of(slice, &e)
			if err != nil {
				return err
			}
			s.endpoints = append(s.endpoints, endpoint{
				pod:         e.TargetRef.Name,
				node:        *e.NodeName,
				addr:        netip.AddrPortFrom(addr, uint16(*p.Port)),
				port:        *p.Name,
				proto:       protoOf(p.Protocol),
				ready:       isTrue(e.Conditions.Ready, true),
				terminating: isTrue(e.Conditions.Terminating, false) && isTrue(e.Conditions.Serving, true),
				weight:      weight,
				delay:       delay,
			})
		}
	}
	return nil
}

func isTrue(p *bool, otherwise bool) bool {
	if p == nil {
		return otherwise
	}
	return *p
}

func protoOf(p *corev1.Protocol) string {
	if p != nil && *p == corev1.ProtocolUDP {
		return lab.UDP
	}
	return lab.TCP
}

// findPods collects the pods that the endpoints name, with their addresses.
func (c *cluster) findPods() error {
	byName := map[string]*lab.PodSpec{}
	for _, s := range c.services {
		for _, e := range s.endpoints {
			p := byName[e.pod]
			if p == nil {
				p = &lab.PodSpec{Name: e.pod, Node: e.node}
				byName[e.pod] = p
			}
			addr := &p.Addr4
			if e.addr.Addr().Is6() {
				addr = &p.Addr6
			}
			if addr.IsValid() && *addr != e.addr.Addr() || p.Node != e.node {
				return fmt.Errorf("service %s: pod %s is at %s on %s and at %s on %s",
					s.name, e.pod, *addr, p.Node, e.addr.Addr(), e.node)
			}
			*addr = e.addr.Addr()
		}
	}
	for _, p := range byName {
		c.pods = append(c.pods, *p)
	}
	slices.SortFunc(c.pods, func(a, b lab.PodSpec) int { return cmp.Compare(a.Name, b.Name) })
	return nil
}

// podNames are the pods of a Service in order, ready or not.
func (s *service) podNames() []string {
	var names []string
	for _, e := range s.endpoints {
		names = append(names, e.pod)
	}
	slices.Sort(names)
	return slices.Compact(names)
}
