// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"embed"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// webPath is where pages for people are.
const webPath = "/web/"

// webTimeout is how long data may take to be found out.
const webTimeout = 20 * time.Second

//go:embed web/index.html web/app.js web/style.css
var webFiles embed.FS

// webPolicy lets the pages load what is beside them, and nothing from elsewhere; nobody may
// put them into a frame.
const webPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// web adds pages that show what live returns, as JSON at data.json. Nothing can be changed
// there: GET and HEAD are all that is answered.
func (l *listing) web(live func(context.Context) (any, error), node string) {
	files, err := fs.Sub(webFiles, "web")
	if err != nil {
		panic(err) // it is embedded
	}
	guard := func(h http.Handler) http.Handler { return guarded(h, node) }
	l.handle("GET "+webPath, guard(http.StripPrefix(webPath, http.FileServerFS(files))))
	l.handle("GET "+webPath+"data.json", guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), webTimeout)
		defer cancel()
		data, err := live(ctx)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, http.StatusOK, data)
	})))
}

// guarded answers with h those who ask for this node by an address, as localhost or by its
// name. A page from elsewhere that makes a browser ask, under a name of its own that leads
// here, is refused.
func guarded(h http.Handler, node string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head := w.Header()
		head.Set("Content-Security-Policy", webPolicy)
		head.Set("X-Content-Type-Options", "nosniff")
		head.Set("Referrer-Policy", "no-referrer")
		head.Set("Cross-Origin-Resource-Policy", "same-origin")
		head.Set("Cache-Control", "no-store")
		if !ownHost(r.Host, node) {
			http.Error(w, "ask by an address, as localhost, or by the node's name", http.StatusMisdirectedRequest)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func ownHost(host, node string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	_, err := netip.ParseAddr(host)
	return err == nil || host == "localhost" || host == strings.ToLower(node) && node != ""
}
