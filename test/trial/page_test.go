// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"fmt"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/test/browser"
)

// TestWebPage looks at the page in a browser, as wide as a screen and as a phone, light and
// dark: it shows the Services, their backends and what connections do, fits, and has nothing
// that its own policy forbids.
func TestWebPage(t *testing.T) {
	r := newRig(t)
	r.put("web.yaml", r.manifest("web", webVIP, "backend1", "backend2"))
	r.put("none.yaml", r.service("none", nextVIP))
	r.run("--web")
	req := lab.Request{Proto: lab.TCP, To: webVIP.addr(), Timeout: 5 * time.Second}
	if _, err := r.lab.Host("client1").DialMany(t.Context(), req, 20); err != nil {
		t.Fatal(err)
	}
	held, res := r.lab.Host("client1").Open(t.Context(), req)
	if res.Kind != lab.OK {
		t.Fatalf("open: %s %s", res.Kind, res.Err)
	}
	node := r.lab.Host(lab.Node)
	b := browser.Start(t, node.Command(t.Context(), "chromium", browser.Args(r.lab.Dir())...), node.Start)
	for _, width := range []int{1280, 390} {
		b.Open("http://"+metricsAddr+"/web/", width, width == 390)
		eventually(t, "the page shows both Services", func() bool {
			return b.Eval(`document.querySelectorAll("details.service").length`) == "2"
		})
		if _, err := r.lab.Host("client1").DialMany(t.Context(), req, 30); err != nil {
			t.Fatal(err)
		}
		const web = `document.querySelector('[data-name="shop/web:http/TCP/IPv4"]')`
		eventually(t, "new connections are seen", func() bool {
			return b.Eval(`/[1-9][0-9.]*\/s/.test(`+web+`.querySelector("summary").textContent)`) == "true"
		})
		eventually(t, "of all connections one is open", func() bool { // those of a moment ago are, for a look or two
			return b.Eval(web+`.querySelectorAll("summary .fact")[2].textContent`) == "open1"
		})
		for what, want := range map[string]string{
			web + `.querySelectorAll("tbody tr").length`:                                                                              "2",
			web + `.querySelector("tbody td").textContent`:                                                                            "10.244.1.11:8080",
			web + `.querySelectorAll("summary .fact")[0].textContent`:                                                                 "algorithmround-robin",
			web + `.querySelectorAll("tbody svg.bar").length`:                                                                         "2",
			`/No backend/.test(document.querySelector('[data-name^="shop/none"]').textContent)`:                                       "true",
			`document.querySelectorAll("#totals .total").length`:                                                                      "4",
			`document.getElementById("node").textContent`:                                                                             "node",
			`document.getElementById("banner").hidden`:                                                                                "true",
			`document.documentElement.scrollWidth <= document.documentElement.clientWidth`:                                            "true",
			`getComputedStyle(document.body).backgroundColor === "rgb(255, 255, 255)"`:                                                fmt.Sprint(width != 390),
			`document.querySelectorAll("table").length === 0 || getComputedStyle(document.querySelector("thead")).display !== "none"`: fmt.Sprint(width != 390),
		} {
			if got := b.Eval(what); got != want {
				t.Errorf("width %d: %s is %s, want %s", width, what, got, want)
			}
		}
		b.Shoot(fmt.Sprintf("web-%d", width))
		b.Eval(`document.getElementById("filter").value = "none"; document.getElementById("filter").dispatchEvent(new Event("input"))`)
		if got := b.Eval(`document.querySelectorAll("details.service").length`); got != "1" {
			t.Errorf("width %d: filtered: %s Services, want 1", width, got)
		}
	}
	if complaints := b.Errors(); len(complaints) > 0 {
		t.Errorf("the browser complains: %q", complaints)
	}
	if err := held.Close(t.Context(), "fin"); err != nil {
		t.Error(err)
	}
}
