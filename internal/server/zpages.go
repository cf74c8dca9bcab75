// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"maps"
	"mime"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"time"
)

// The pages that all components of Kubernetes have for people who look for a fault.
// Source: Kubernetes 1.37 staging/src/k8s.io/apiserver/pkg/server/{flagz,statusz}.

const (
	component    = "lbproxy"
	zpageWarning = "Warning: This endpoint is for people. Its format may change at any time.\n"
	zpageVersion = "config.k8s.io/v1beta1"
)

// zpage is what flagz and statusz have in common as JSON.
type zpage struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Metadata   map[string]any `json:"metadata"`
}

func newZpage(kind string) zpage {
	return zpage{zpageVersion, kind, map[string]any{"name": component}}
}

// flagzPage is the JSON of /flagz.
type flagzPage struct {
	zpage
	Flags map[string]string `json:"flags"`
}

// statuszPage is the JSON of /statusz.
type statuszPage struct {
	zpage
	StartTime     time.Time `json:"startTime"`
	UptimeSeconds int64     `json:"uptimeSeconds"`
	GoVersion     string    `json:"goVersion"`
	BinaryVersion string    `json:"binaryVersion"`
	Paths         []string  `json:"paths"`
}

// flagz serves every flag with its value.
func flagz(p Pages) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		flags := map[string]string{}
		if p.Flags != nil {
			flags = p.Flags()
		}
		if wantsJSON(r) {
			writeJSON(w, http.StatusOK, flagzPage{newZpage("Flagz"), flags})
			return
		}
		var b strings.Builder
		fmt.Fprintf(&b, "\n%s flagz\n%s\n", component, zpageWarning)
		for _, name := range slices.Sorted(maps.Keys(flags)) {
			fmt.Fprintf(&b, "%s=%s\n", name, flags[name])
		}
		writeText(w, b.String())
	}
}

// statusz serves what runs and since when. paths returns what else is served.
func statusz(p Pages, paths func() []string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		up := time.Since(p.Started)
		st := statuszPage{newZpage("Statusz"), p.Started.UTC(), int64(up.Seconds()), runtime.Version(), p.Version, paths()}
		if wantsJSON(r) {
			writeJSON(w, http.StatusOK, st)
			return
		}
		writeText(w, fmt.Sprintf("\n%s statusz\n%s\nStarted: %s\nUp: %s\nGo version: %s\nBinary version: %s\n\nPaths: %s\n",
			component, zpageWarning, st.StartTime.Format(time.UnixDate), up.Truncate(time.Second),
			st.GoVersion, st.BinaryVersion, strings.Join(st.Paths, " ")))
	}
}

// wantsJSON tells whether a client asks for JSON, in whatever version.
func wantsJSON(r *http.Request) bool {
	for accept := range strings.SplitSeq(r.Header.Get("Accept"), ",") {
		if t, _, err := mime.ParseMediaType(accept); err == nil && t == "application/json" {
			return true
		}
	}
	return false
}
