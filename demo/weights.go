// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	discovery "k8s.io/api/discovery/v1"
)

const (
	weightKey     = "lbproxy.io/weight"
	defaultWeight = 100
)

// weights are those of Pods and Nodes, by kind and name.
type weights map[string]int

// add notes the weight in the labels or annotations of an object, if there is one.
func (ws weights) add(object string, from map[string]string) error {
	text, ok := from[weightKey]
	if !ok {
		return nil
	}
	w, err := parseWeight(text)
	if err != nil {
		return fmt.Errorf("%s: %w", object, err)
	}
	ws[object] = w
	return nil
}

// of returns the weight of an endpoint: the Pod's, else the slice's, else the Node's.
func (ws weights) of(slice *discovery.EndpointSlice, e *discovery.Endpoint) (int, error) {
	if w, ok := ws["Pod "+slice.Namespace+"/"+e.TargetRef.Name]; ok {
		return w, nil
	}
	if text, ok := slice.Annotations[weightKey]; ok {
		return parseWeight(text)
	}
	if w, ok := ws["Node "+*e.NodeName]; ok {
		return w, nil
	}
	return defaultWeight, nil
}

func parseWeight(text string) (int, error) {
	w, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", weightKey, err)
	}
	return int(w), nil
}

// sticky tells whether all connections of a client go to one backend.
func (s *service) sticky() bool {
	switch s.algorithm {
	case "ip-hash":
		return true
	case "hash":
		key := s.annotations[hashKeyKey]
		return key == "" || key == "source-ip"
	}
	return false
}

// source is as much of a client's address as decides where it goes. Only of a
// sticky Service it means anything.
func (s *service) source(addr netip.Addr) (netip.Prefix, error) {
	bits := addr.BitLen()
	text := s.annotations[prefixKey]
	if s.algorithm != "ip-hash" || text == "" {
		return netip.PrefixFrom(addr, bits), nil
	}
	of4, of6, both := strings.Cut(text, ",")
	if addr.Is6() {
		if !both {
			return netip.PrefixFrom(addr, bits), nil
		}
		of4 = of6
	}
	bits, err := strconv.Atoi(of4)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("service %s: %s: %w", s.name, prefixKey, err)
	}
	return addr.Prefix(bits)
}
