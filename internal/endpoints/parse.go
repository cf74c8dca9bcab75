// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/lbproxy/lbproxy/internal/lb"
)

const (
	// labelProxyName gives a Service to another proxy.
	labelProxyName = "service.kubernetes.io/service-proxy-name"
	// labelHeadless marks EndpointSlices nobody balances.
	labelHeadless = v1.IsHeadlessService
)

var families = [...]lb.Family{lb.IPv4, lb.IPv6}

// index returns f's place in families.
func index(f lb.Family) int {
	if f == lb.IPv4 {
		return 0
	}
	return 1
}

// service is what is kept of a v1.Service. It is never changed after it was
// handed to a Store.
type service struct {
	obj      lb.Object
	uid      string
	created  int64 // seconds since 1970; 0 when unknown, which counts as oldest
	said     said
	given    asked   // the annotations that said is from
	bad      asked   // those that are invalid: what worked before is kept
	units    []unit  // sorted by name; none when the Service is not to be served
	extras   *extras // nil: none
	problems []Problem
	effects  []Problem // of annotations without effect, see settle
}

// equal tells whether s and t resolve alike.
func (s *service) equal(t *service) bool {
	return s.obj == t.obj && s.uid == t.uid && s.created == t.created && s.said == t.said && s.extras.equal(t.extras) &&
		slices.EqualFunc(s.units, t.units, unit.equal) && slices.EqualFunc(s.problems, t.problems, Problem.same) &&
		slices.EqualFunc(s.effects, t.effects, Problem.same)
}

// impossible tells whether s has values that an API server refuses.
func (s *service) impossible() bool {
	return slices.ContainsFunc(s.problems, func(p Problem) bool {
		return p.Reason == ReasonInvalidPort || p.Reason == ReasonNoClusterIP
	})
}

// spec is the validated part of a v1.ServiceSpec that frontends are made of.
type spec struct {
	served    [len(families)]bool
	clusterIP [len(families)]netip.Addr // zero when there is none
	external  []vip
	ports     []port

	internalLocal, externalLocal bool

	extras
}

// vip is an external IP or a load balancer's IP.
type vip struct {
	addr netip.Addr
	typ  lb.FrontendType
}

// port is one valid Service port; nodePort is 0 when it has none.
type port struct {
	name           string
	field          string
	proto          lb.Proto
	port, nodePort uint16
}

// parseService reads what matters of in. It keeps nothing of in but strings.
func parseService(in *v1.Service, o *Options) *service {
	obj := lb.Object{Namespace: in.Namespace, Name: in.Name}
	svc := &service{obj: obj, uid: string(in.UID)}
	if !in.CreationTimestamp.IsZero() {
		svc.created = in.CreationTimestamp.Unix()
	}
	p := &problems{kind: KindService, object: obj}
	if !skip(in, p) {
		svc.said, svc.given, svc.bad = parseAnnotations(in.Annotations, o, p)
		sp := parseSpec(in, o, p)
		svc.units, svc.extras = units(obj, sp, o, p), sp.orNil()
	}
	svc.problems = p.list()
	return svc
}

// skip tells whether nobody, or another proxy, serves in.
func skip(in *v1.Service, p *problems) bool {
	if _, foreign := in.Labels[labelProxyName]; foreign {
		return true
	}
	switch {
	case in.Spec.Type == v1.ServiceTypeExternalName || in.Spec.ClusterIP == v1.ClusterIPNone:
		return true
	case in.Spec.ClusterIP == "":
		p.add("spec.clusterIP", ReasonNoClusterIP, errors.New("is empty: the Service is not served"))
		return true
	}
	return false
}

func parseSpec(in *v1.Service, o *Options, p *problems) *spec {
	sp := &spec{}
	sp.parsePolicies(&in.Spec, p)
	sp.parseAffinity(&in.Spec, p)
	sp.parseClusterIPs(&in.Spec, p)
	sp.parseRanges(&in.Spec, p)
	sp.parseExternal(in, o, p)
	sp.parsePorts(&in.Spec, o, p)
	sp.parseHealthCheck(&in.Spec, p)
	return sp
}

func (s *spec) parsePolicies(in *v1.ServiceSpec, p *problems) {
	if itp := in.InternalTrafficPolicy; itp != nil {
		s.internalLocal = *itp == v1.ServiceInternalTrafficPolicyLocal
		if !s.internalLocal && *itp != v1.ServiceInternalTrafficPolicyCluster && *itp != "" {
			p.add("spec.internalTrafficPolicy", ReasonUnknownPolicy, fmt.Errorf("%q is taken as Cluster", *itp))
		}
	}
	etp := in.ExternalTrafficPolicy
	s.externalLocal = etp == v1.ServiceExternalTrafficPolicyLocal
	if !s.externalLocal && etp != v1.ServiceExternalTrafficPolicyCluster && etp != "" {
		p.add("spec.externalTrafficPolicy", ReasonUnknownPolicy, fmt.Errorf("%q is taken as Cluster", etp))
	}
}

// parseClusterIPs takes one cluster IP per family, by the index of the family in
// ipFamilies, or by the address itself when there are no ipFamilies.
func (s *spec) parseClusterIPs(in *v1.ServiceSpec, p *problems) {
	ips := in.ClusterIPs
	if len(ips) == 0 {
		ips = []string{in.ClusterIP}
	}
	for i, f := range in.IPFamilies {
		switch field := fmt.Sprintf("spec.ipFamilies[%d]", i); {
		case f != v1.IPv4Protocol && f != v1.IPv6Protocol:
			p.add(field, ReasonFamilyMismatch, fmt.Errorf("%q: want IPv4 or IPv6", f))
		case i >= len(ips):
			p.add(field, ReasonFamilyMismatch, fmt.Errorf("%s has no cluster IP: it is not served", f))
		default:
			s.served[familyIndex(f)] = true
		}
	}
	for i, text := range ips {
		field := fmt.Sprintf("spec.clusterIPs[%d]", i)
		addr, err := parseVIP(text)
		if err != nil {
			p.add(field, ReasonInvalidAddress, err)
			continue
		}
		f := lb.FamilyOf(addr)
		switch {
		case len(in.IPFamilies) > 0 && (i >= len(in.IPFamilies) || string(in.IPFamilies[i]) != f.String()):
			p.add(field, ReasonFamilyMismatch, fmt.Errorf("%s is not of the family that spec.ipFamilies has here", addr))
		case s.clusterIP[index(f)].IsValid():
			p.add(field, ReasonFamilyMismatch, fmt.Errorf("%s is a second address of family %s", addr, f))
		default:
			s.served[index(f)], s.clusterIP[index(f)] = true, addr
		}
	}
}

func familyIndex(f v1.IPFamily) int {
	if f == v1.IPv4Protocol {
		return 0
	}
	return 1
}

// parseExternal takes the load balancer's IPs and the external IPs. One that is both
// is the load balancer's, whose source ranges would else be open to everybody.
func (s *spec) parseExternal(in *v1.Service, o *Options, p *problems) {
	for i, ing := range in.Status.LoadBalancer.Ingress {
		if ing.IP == "" || ing.IPMode != nil && *ing.IPMode != v1.LoadBalancerIPModeVIP {
			continue
		}
		if addr, ok := s.parseExternalIP(fmt.Sprintf("status.loadBalancer.ingress[%d].ip", i), ing.IP, p); ok {
			s.external = append(s.external, vip{addr, lb.LoadBalancer})
			if f := index(lb.FamilyOf(addr)); s.ranged[f] {
				s.own[f] = append(s.own[f], netip.PrefixFrom(addr, addr.BitLen()))
			}
		}
	}
	for i := range s.own {
		s.own[i] = sortPrefixes(s.own[i])
	}
	if o.DenyExternalIPs && len(in.Spec.ExternalIPs) > 0 {
		p.add("spec.externalIPs", ReasonExternalIPsDenied, errors.New("external IPs are switched off: they are not served"))
		return
	}
	for i, text := range in.Spec.ExternalIPs {
		if strings.TrimSpace(text) == "" {
			continue
		}
		if addr, ok := s.parseExternalIP(fmt.Sprintf("spec.externalIPs[%d]", i), text, p); ok {
			s.external = append(s.external, vip{addr, lb.ExternalIP})
		}
	}
}

func (s *spec) parseExternalIP(field, text string, p *problems) (netip.Addr, bool) {
	addr, err := parseVIP(text)
	if err != nil {
		p.add(field, ReasonInvalidAddress, err)
		return addr, false
	}
	if f := lb.FamilyOf(addr); !s.served[index(f)] {
		p.add(field, ReasonFamilyMismatch, fmt.Errorf("%s: the Service has no family %s", addr, f))
		return addr, false
	}
	return addr, true
}

func (s *spec) parsePorts(in *v1.ServiceSpec, o *Options, p *problems) {
	type key struct {
		name  string
		proto lb.Proto
	}
	seen := map[key]bool{}
	for i := range in.Ports {
		sp := &in.Ports[i]
		field := fmt.Sprintf("spec.ports[%d]", i)
		proto, err := lb.ParseProto(string(sp.Protocol))
		switch {
		case err != nil:
			p.add(field+".protocol", ReasonUnsupportedProto, err)
			continue
		case proto == lb.SCTP && !o.SCTP:
			p.add(field+".protocol", ReasonUnsupportedProto, errors.New("SCTP is not served by the eBPF dataplane"))
			continue
		case !validPort(sp.Port):
			p.add(field+".port", ReasonInvalidPort, fmt.Errorf("%d is outside 1..65535", sp.Port))
			continue
		case seen[key{sp.Name, proto}]:
			p.add(field+".name", ReasonDuplicatePort, fmt.Errorf("%q/%s is the name of an earlier port", sp.Name, proto))
			continue
		case sp.Name != "" && len(validation.IsDNS1123Label(sp.Name)) > 0:
			p.add(field+".name", ReasonInvalidPort, fmt.Errorf("%q is not a port name", sp.Name))
			continue
		}
		seen[key{sp.Name, proto}] = true
		if proto == lb.SCTP {
			p.addQuiet(field+".protocol", ReasonSCTPFromNode, errors.New("SCTP is not served to processes in the node's own network namespace"))
		}
		nodePort := sp.NodePort
		switch {
		case nodePort != 0 && !validPort(nodePort):
			p.add(field+".nodePort", ReasonInvalidPort, fmt.Errorf("%d is outside 1..65535", nodePort))
			nodePort = 0
		case nodePort == 0 && in.Type == v1.ServiceTypeNodePort:
			p.add(field+".nodePort", ReasonInvalidPort, errors.New("is not set, and the type is NodePort"))
		}
		s.ports = append(s.ports, port{sp.Name, field, proto, uint16(sp.Port), uint16(nodePort)})
	}
}

func validPort(p int32) bool { return p >= 1 && p <= 65535 }

// parseVIP reads an address that a Service may answer at.
func parseVIP(text string) (netip.Addr, error) {
	addr, err := parseIP(text)
	if err == nil && (addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast()) {
		err = fmt.Errorf("%s cannot be the address of a Service", addr)
	}
	return addr, err
}

// parseIP reads an address as Kubernetes does: without zone, leading zeros in a
// dotted quad are decimal, and a v4-mapped address is IPv4.
func parseIP(text string) (netip.Addr, error) {
	text = strings.TrimSpace(text)
	addr, err := netip.ParseAddr(text)
	if err != nil {
		addr, err = netip.ParseAddr(trimZeros(text))
	}
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%s is not an IP address", lb.Quote(text))
	}
	return addr.Unmap(), nil
}

// trimZeros removes leading zeros from the parts of a dotted quad.
func trimZeros(text string) string {
	parts := strings.Split(text, ".")
	if len(parts) != 4 {
		return text
	}
	for i, part := range parts {
		if t := strings.TrimLeft(part, "0"); t != "" {
			parts[i] = t
		} else if part != "" {
			parts[i] = "0"
		}
	}
	return strings.Join(parts, ".")
}
