// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// top returns a file of the repository.
func top(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestDockerfile: the image that an engine builds is this program's: by a Go that takes the
// module, on the same Debian, from the same files, with the same configuration.
func TestDockerfile(t *testing.T) {
	build, last, ok := strings.Cut(top(t, "Dockerfile"), "\nFROM scratch\n")
	if !ok {
		t.Fatal("the last stage is not from scratch")
	}
	from := regexp.MustCompile(`(?m)^FROM golang:1\.(\d+)\.\d+-(\w+) AS build$`).FindStringSubmatch(build)
	needs := regexp.MustCompile(`(?m)^go 1\.(\d+)\.\d+$`).FindStringSubmatch(top(t, "go.mod"))
	if from == nil || needs == nil || from[1] != needs[1] || from[2] != suite {
		t.Errorf("built from %q, want Go 1.%s on %s", from, needs, suite)
	}
	for _, line := range []string{"COPY . .", "RUN make build VERSION=$VERSION", `RUN cd deploy && go run ./image -dir /rootfs "$(go env GOARCH)=../bin/lbproxy"`} {
		if !strings.Contains(build, "\n"+line+"\n") {
			t.Errorf("does not build by %q", line)
		}
	}
	want := []string{
		"ARG VERSION=dev", "COPY --from=build /rootfs/ /", "ENV " + imagePath, "WORKDIR /", fmt.Sprintf("ENTRYPOINT [%q]", "/"+programPath),
	}
	for name, value := range labels("$VERSION") {
		want = append(want, fmt.Sprintf("LABEL %s=%q", name, value))
	}
	got := strings.Split(strings.TrimSpace(last), "\n")
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the last stage is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestDockerignore: what the build does not see is what git does not have.
func TestDockerignore(t *testing.T) {
	ignored := strings.Fields(top(t, ".gitignore"))
	for _, name := range strings.Fields(top(t, ".dockerignore")) {
		if name != ".git" && !slices.Contains(ignored, "/"+name+"/") {
			t.Errorf("%s is left out, but not by git", name)
		}
	}
}
