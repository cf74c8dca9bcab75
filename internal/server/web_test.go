// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

func webPages() Pages {
	p := pages()
	p.Node = "worker-1"
	p.Web = func(context.Context) (any, error) { return map[string]string{"name": "</script><b>"}, nil }
	return p
}

func TestWebIsOffByDefault(t *testing.T) {
	for _, path := range []string{webPath, webPath + "data.json", webPath + "app.js"} {
		if code, _ := get(t, MetricsHandler(pages()), path); code != http.StatusNotFound {
			t.Errorf("%s: code %d, want 404", path, code)
		}
	}
}

// askAs asks as a browser does that was told a host's name.
func askAs(h http.Handler, method, host, path string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, path, nil)
	req.Host = host
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	return rec
}

func TestWeb(t *testing.T) {
	h := MetricsHandler(webPages())
	for path, want := range map[string][2]string{
		webPath:               {"text/html", "<title>lbproxy</title>"},
		webPath + "app.js":    {"text/javascript", "data.json"},
		webPath + "style.css": {"text/css", "prefers-color-scheme"},
		webPath + "data.json": {"application/json", `{"name":"\u003c/script\u003e\u003cb\u003e"}`},
	} {
		rec := askAs(h, http.MethodGet, "127.0.0.1:10249", path)
		head := rec.Header()
		if rec.Code != 200 || !strings.HasPrefix(head.Get("Content-Type"), want[0]) || !strings.Contains(rec.Body.String(), want[1]) {
			t.Errorf("%s: %d %s, want 200 %s with %q", path, rec.Code, head.Get("Content-Type"), want[0], want[1])
		}
		if head.Get("Content-Security-Policy") != webPolicy || head.Get("X-Content-Type-Options") != "nosniff" || head.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: headers %v", path, head)
		}
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch} {
			if code := askAs(h, method, "127.0.0.1:10249", path).Code; code != http.StatusMethodNotAllowed {
				t.Errorf("%s %s: code %d, want 405", method, path, code)
			}
		}
	}
	if code := askAs(h, http.MethodGet, "localhost", webPath+"server.go").Code; code != http.StatusNotFound {
		t.Errorf("another file: code %d, want 404", code)
	}
}

// TestWebHost: a name that somebody made lead here opens nothing.
func TestWebHost(t *testing.T) {
	h := MetricsHandler(webPages())
	for host, want := range map[string]int{
		"127.0.0.1:10249": 200, "[::1]:10249": 200, "192.0.2.7": 200, "localhost:8001": 200, "worker-1:10249": 200, "WORKER-1": 200,
		"evil.example:10249": 421, "worker-1.evil.example": 421, "": 421,
	} {
		if code := askAs(h, http.MethodGet, host, webPath+"data.json").Code; code != want {
			t.Errorf("host %q: code %d, want %d", host, code, want)
		}
	}
}

func TestWebSaysWhatIsWrong(t *testing.T) {
	p := webPages()
	p.Web = func(context.Context) (any, error) { return nil, errors.New("maps are gone") }
	rec := askAs(MetricsHandler(p), http.MethodGet, "localhost", webPath+"data.json")
	if rec.Code != http.StatusServiceUnavailable || !strings.Contains(rec.Body.String(), "maps are gone") {
		t.Errorf("%d %q", rec.Code, rec.Body)
	}
}

// TestWebNeedsNothingElse: no page names another host, and none has a script or a style in
// it, which the policy would forbid.
func TestWebNeedsNothingElse(t *testing.T) {
	elsewhere := regexp.MustCompile(`(https?:)?//[a-z0-9.-]+\.[a-z]`)
	inside := regexp.MustCompile(`(?i)<style|\sstyle=|<script[^>]*>[^<]|\son[a-z]+=|innerHTML|insertAdjacentHTML|document\.write|eval\(`)
	err := fs.WalkDir(webFiles, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := webFiles.ReadFile(path)
		if err != nil {
			return err
		}
		body := strings.ReplaceAll(string(text), "http://www.w3.org/2000/svg", "") // the name of a language
		if found := elsewhere.FindString(body); found != "" {
			t.Errorf("%s leads to %s", path, found)
		}
		if found := inside.FindString(body); found != "" {
			t.Errorf("%s has %q", path, found)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
