// SPDX-License-Identifier: Apache-2.0

//go:build root

package report

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/lbproxy/lbproxy/bench/internal/observe"
	"github.com/lbproxy/lbproxy/test/browser"
)

// TestPageInBrowser looks at a page of made-up results as wide as a screen and as a phone,
// light and dark: all of it is there, nothing sticks out, nothing is fetched, and nothing
// is complained about.
func TestPageInBrowser(t *testing.T) {
	dir := t.TempDir()
	data, at := filepath.Join(dir, "results.json"), filepath.Join(dir, "page.html")
	if err := observe.Save(data, newMaker(t).file()); err != nil {
		t.Fatal(err)
	}
	if err := Write(Options{Results: data, Page: at}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "chromium", browser.Args(dir)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET} // there is nobody to fetch from
	b := browser.Start(t, cmd, (*exec.Cmd).Start)
	for _, width := range []int{1280, 390} {
		phone := width == 390
		for _, dark := range []bool{false, true} {
			b.Open("file://"+at, width, dark)
			b.Eval(`new Promise(r => document.readyState === "complete" ? r() : addEventListener("load", r))`)
			for what, want := range map[string]string{
				`document.documentElement.scrollWidth <= document.documentElement.clientWidth`: "true",
				`document.querySelectorAll("main > section").length`:                           "9",
				`document.querySelectorAll("#heterogeneous figure").length`:                    "6",
				`document.querySelector(".lose + .scroll tbody td").textContent`:               "heterogeneous",
				`document.querySelectorAll("#heterogeneous > .scroll tbody tr").length`:        "10",
				`getComputedStyle(document.querySelector("figure .wide")).display`:             map[bool]string{false: "block", true: "none"}[phone],
				`getComputedStyle(document.querySelector("figure .narrow")).display`:           map[bool]string{false: "none", true: "block"}[phone],
				`getComputedStyle(document.body).backgroundColor === "rgb(255, 255, 255)"`:     fmt.Sprint(!dark),
				`performance.getEntriesByType("resource").length`:                              "0",
				// No label of a picture covers another.
				`[...document.querySelectorAll("figure svg")].filter(s => s.getClientRects().length).flatMap(s => {
					const boxes = [...s.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
					return boxes.flatMap(([x, a], i) => boxes.slice(i + 1).filter(([, b]) =>
						a.left < b.right - 2 && b.left < a.right - 2 && a.top < b.bottom - 4 && b.top < a.bottom - 4).map(([y]) => x + " and " + y)) }).join()`: "",
				// Every label is inside of its picture.
				`[...document.querySelectorAll("figure svg text")].filter(t => t.getClientRects().length && (() => {
					const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();
					return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1 })()).map(t => t.textContent).join()`: "",
			} {
				if got := b.Eval(what); got != want {
					t.Errorf("width %d, dark %t: %s is %s, want %s", width, dark, what, got, want)
				}
			}
			b.Shoot(fmt.Sprintf("report-%d-%t", width, dark))
		}
	}
	if complaints := b.Errors(); len(complaints) > 0 {
		t.Errorf("the browser complains: %q", complaints)
	}
}
