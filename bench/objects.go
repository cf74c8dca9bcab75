// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/lbproxy/lbproxy/internal/lab"
)

const endpointsEach = 10 // of each Service of the control plane's suites

func ptr[T any](v T) *T { return &v }

// clusterService is Service i of a big cluster.
func clusterService(i int) *corev1.Service {
	vip := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String()
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "bench", Name: fmt.Sprintf("svc-%d", i)},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: vip, ClusterIPs: []string{vip},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports:      []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
}

// clusterSlice has the first n endpoints of Service i.
func clusterSlice(i, n int) *discovery.EndpointSlice {
	s := &discovery.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "bench", Name: fmt.Sprintf("svc-%d-x", i),
			Labels: map[string]string{discovery.LabelServiceName: fmt.Sprintf("svc-%d", i)},
		},
		AddressType: discovery.AddressTypeIPv4,
		Ports: []discovery.EndpointPort{{
			Name: ptr("http"), Protocol: ptr(corev1.ProtocolTCP), Port: ptr(int32(8080)),
		}},
	}
	for k := range n {
		id := i*endpointsEach + k
		s.Endpoints = append(s.Endpoints, discovery.Endpoint{
			Addresses:  []string{netip.AddrFrom4([4]byte{10, byte(128 + id>>16), byte(id >> 8), byte(id)}).String()},
			NodeName:   ptr(fmt.Sprintf("node-%d", id%100)),
			Conditions: discovery.EndpointConditions{Ready: ptr(true), Serving: ptr(true)},
		})
	}
	if n > 0 {
		s.Endpoints[0].NodeName = ptr(lab.Node)
	}
	return s
}

// writeManifests writes services Services with their slices to files of dir, 100
// Services each.
func writeManifests(dir string, services int) error {
	const each = 100
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("manifests: %w", err)
	}
	var text bytes.Buffer
	for i := range services {
		for _, obj := range []any{clusterService(i), clusterSlice(i, endpointsEach)} {
			doc, err := yaml.Marshal(obj)
			if err != nil {
				return fmt.Errorf("manifests: %w", err)
			}
			text.WriteString("---\n")
			text.Write(doc)
		}
		if (i+1)%each != 0 && i+1 != services {
			continue
		}
		file := filepath.Join(dir, fmt.Sprintf("services-%d.yaml", i/each))
		if err := os.WriteFile(file, text.Bytes(), 0o644); err != nil {
			return fmt.Errorf("manifests: %w", err)
		}
		text.Reset()
	}
	return nil
}
