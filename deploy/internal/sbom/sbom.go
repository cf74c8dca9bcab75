// SPDX-License-Identifier: Apache-2.0

// Package sbom writes what an image or a program consists of, as CycloneDX and as SPDX.
// Go modules come from the program itself, where the Go toolchain put them; Debian
// packages from the image's lock file.
package sbom

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	cyclonedx "github.com/CycloneDX/cyclonedx-go"

	"github.com/lbproxy/lbproxy/deploy/internal/debian"
)

// Component is one thing that something consists of.
type Component struct {
	Name    string
	Version string
	PURL    string // a package URL, by which scanners know it
	SHA256  string // of what was downloaded, hexadecimal; empty: not known
}

// Bill is what one thing consists of.
type Bill struct {
	Name, Version string
	At            time.Time
	Components    []Component
}

// Program returns the components of a Go program at path: the standard library and its
// modules. Those that are replaced by a directory are no component of their own.
func Program(path string) ([]Component, error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return nil, err
	}
	std := strings.TrimPrefix(info.GoVersion, "go")
	cs := []Component{{Name: "stdlib", Version: std, PURL: "pkg:golang/stdlib@" + std}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		if m.Version != "" {
			cs = append(cs, module(m))
		}
	}
	return cs, nil
}

func module(m *debug.Module) Component {
	return Component{Name: m.Path, Version: m.Version, PURL: "pkg:golang/" + m.Path + "@" + url.PathEscape(m.Version)}
}

// Debian returns packages as components.
func Debian(ps []debian.Package) []Component {
	cs := make([]Component, len(ps))
	for i, p := range ps {
		cs[i] = Component{
			Name: p.Name, Version: p.Version, SHA256: p.SHA256,
			PURL: fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s&distro=bookworm", p.Name, url.QueryEscape(p.Version), p.Arch),
		}
	}
	return cs
}

// CycloneDX writes b as CycloneDX 1.6.
func (b Bill) CycloneDX(w io.Writer) error {
	doc := cyclonedx.NewBOM()
	doc.SpecVersion = cyclonedx.SpecVersion1_6
	doc.JSONSchema = "http://cyclonedx.org/schema/bom-1.6.schema.json"
	doc.Metadata = &cyclonedx.Metadata{
		Timestamp: b.At.UTC().Format(time.RFC3339),
		Component: &cyclonedx.Component{BOMRef: b.Name, Type: cyclonedx.ComponentTypeApplication, Name: b.Name, Version: b.Version},
	}
	parts := []cyclonedx.Component{}
	refs := []string{}
	for _, c := range b.Components {
		part := cyclonedx.Component{BOMRef: c.PURL, Type: cyclonedx.ComponentTypeLibrary, Name: c.Name, Version: c.Version, PackageURL: c.PURL}
		if c.SHA256 != "" {
			part.Hashes = &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: c.SHA256}}
		}
		parts, refs = append(parts, part), append(refs, c.PURL)
	}
	doc.Components = &parts
	doc.Dependencies = &[]cyclonedx.Dependency{{Ref: b.Name, Dependencies: &refs}}
	return cyclonedx.NewBOMEncoder(w, cyclonedx.BOMFileFormatJSON).SetPretty(true).Encode(doc)
}

// The parts of an SPDX 2.3 document that are used here.
type (
	spdxDocument struct {
		Version       string             `json:"spdxVersion"`
		DataLicense   string             `json:"dataLicense"`
		ID            string             `json:"SPDXID"`
		Name          string             `json:"name"`
		Namespace     string             `json:"documentNamespace"`
		Creation      spdxCreation       `json:"creationInfo"`
		Packages      []spdxPackage      `json:"packages"`
		Relationships []spdxRelationship `json:"relationships"`
	}
	spdxCreation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		ID            string         `json:"SPDXID"`
		Name          string         `json:"name"`
		Version       string         `json:"versionInfo"`
		Location      string         `json:"downloadLocation"`
		FilesAnalyzed bool           `json:"filesAnalyzed"`
		Licence       string         `json:"licenseConcluded"`
		Checksums     []spdxChecksum `json:"checksums,omitempty"`
		Refs          []spdxRef      `json:"externalRefs,omitempty"`
	}
	spdxChecksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	spdxRef struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxRelationship struct {
		Element string `json:"spdxElementId"`
		Type    string `json:"relationshipType"`
		Related string `json:"relatedSpdxElement"`
	}
)

const (
	spdxDoc      = "SPDXRef-DOCUMENT"
	spdxRoot     = "SPDXRef-root"
	spdxNoClaim  = "NOASSERTION"
	spdxContains = "CONTAINS"
)

var spdxOther = regexp.MustCompile(`[^A-Za-z0-9.-]`)

// SPDX writes b as SPDX 2.3. Its namespace follows from what is in it.
func (b Bill) SPDX(w io.Writer) error {
	doc := spdxDocument{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: spdxDoc, Name: b.Name + " " + b.Version,
		Creation: spdxCreation{Created: b.At.UTC().Format(time.RFC3339), Creators: []string{"Organization: lbproxy"}},
		Packages: []spdxPackage{{ID: spdxRoot, Name: b.Name, Version: b.Version, Location: spdxNoClaim, Licence: spdxNoClaim}},
		Relationships: []spdxRelationship{
			{Element: spdxDoc, Type: "DESCRIBES", Related: spdxRoot},
		},
	}
	all := sha256.New()
	for _, c := range b.Components {
		fmt.Fprintln(all, c.PURL, c.SHA256)
		p := spdxPackage{
			ID: "SPDXRef-" + spdxOther.ReplaceAllString(c.PURL, "-"), Name: c.Name, Version: c.Version, Location: spdxNoClaim, Licence: spdxNoClaim,
			Refs: []spdxRef{{Category: "PACKAGE-MANAGER", Type: "purl", Locator: c.PURL}},
		}
		if c.SHA256 != "" {
			p.Checksums = []spdxChecksum{{Algorithm: "SHA256", Value: c.SHA256}}
		}
		doc.Packages = append(doc.Packages, p)
		doc.Relationships = append(doc.Relationships, spdxRelationship{Element: spdxRoot, Type: spdxContains, Related: p.ID})
	}
	doc.Namespace = "https://github.com/lbproxy/lbproxy/spdx/" + url.PathEscape(b.Name+"-"+b.Version) + "-" + hex.EncodeToString(all.Sum(nil)[:8])
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(doc)
}
