// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// auditLog is the name of the file in which the API server notes what service accounts ask.
const auditLog = "audit.log"

// auditPolicy has the API server note who asks what, and nothing of what is in it.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    userGroups: ["system:serviceaccounts"]
  - level: None
`

// Access is something that may be done with objects of a kind.
type Access struct{ Group, Resource, Verb string }

// String returns it as in "list endpointslices.discovery.k8s.io".
func (a Access) String() string { return fmt.Sprintf("%s %s.%s", a.Verb, a.Resource, a.Group) }

// Asked returns what the service account sa has asked for since the cluster started, by
// how often, and how often that was refused.
func (c *Cluster) Asked(sa types.NamespacedName) (asked, refused map[Access]int, err error) {
	f, err := os.Open(c.file(auditLog))
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	asked, refused = map[Access]int{}, map[Access]int{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var event struct {
			Verb           string
			User           struct{ Username string }
			ObjectRef      *struct{ APIGroup, Resource string }
			ResponseStatus struct{ Code int }
		}
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", auditLog, err)
		}
		if event.User.Username != "system:serviceaccount:"+sa.Namespace+":"+sa.Name || event.ObjectRef == nil {
			continue
		}
		a := Access{event.ObjectRef.APIGroup, event.ObjectRef.Resource, event.Verb}
		if a.Group == authorizationv1.GroupName { // this package asks so, with sa's token
			continue
		}
		asked[a]++
		if event.ResponseStatus.Code == 403 {
			refused[a]++
		}
	}
	return asked, refused, lines.Err()
}

// Granted returns what the ClusterRoles among objs allow.
func Granted(objs []*unstructured.Unstructured) (map[Access]bool, error) {
	granted := map[Access]bool{}
	for _, obj := range objs {
		var role rbacv1.ClusterRole
		if obj.GetKind() != "ClusterRole" {
			continue
		}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(obj.Object, &role); err != nil {
			return nil, fmt.Errorf("role %s: %w", obj.GetName(), err)
		}
		for _, r := range role.Rules {
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					for _, verb := range r.Verbs {
						granted[Access{group, resource, verb}] = true
					}
				}
			}
		}
	}
	return granted, nil
}
