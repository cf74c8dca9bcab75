// SPDX-License-Identifier: Apache-2.0

package debian

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestGet asks again where that may help, and not where it does not.
func TestGet(t *testing.T) {
	for _, tc := range []struct {
		name    string
		answers []int
		asked   int
		err     string
	}{
		{"at once", []int{200}, 1, ""},
		{"busy, then not", []int{503, 429, 200}, 3, ""},
		{"busy", []int{503, 503, 503, 503, 503}, tries, "503"},
		{"gone", []int{404, 200}, 1, "404"},
		{"cut off, then not", []int{0, 200}, 2, ""},
	} {
		asked := 0
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			status := tc.answers[asked]
			asked++
			if status == 0 {
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(status)
			_, _ = w.Write([]byte("text")) // the client may have gone
		}))
		text, err := Archive{URL: s.URL}.Get("pool/a.deb")
		s.Close()
		if asked != tc.asked || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) || err == nil && string(text) != "text" {
			t.Errorf("%s: asked %d times, got %q, error %v; want %d times, and an error that says %q", tc.name, asked, text, err, tc.asked, tc.err)
		}
	}
}
