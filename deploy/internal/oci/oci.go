// SPDX-License-Identifier: Apache-2.0

// Package oci writes container images as archives in the OCI image layout, which
// containerd, podman, skopeo and crane read. The same input is the same bytes.
// Source: github.com/opencontainers/image-spec, version 1.1.
package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// The media types.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// Image is one image for one architecture.
type Image struct {
	Arch       string // as Go names it
	Layers     [][]byte
	Entrypoint []string
	Env        []string
	Labels     map[string]string
}

// Descriptor refers to a blob.
type Descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []Descriptor `json:"manifests"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        Descriptor   `json:"config"`
	Layers        []Descriptor `json:"layers"`
}

type config struct {
	Created      time.Time `json:"created"`
	Architecture string    `json:"architecture"`
	OS           string    `json:"os"`
	Config       struct {
		Env        []string          `json:"Env,omitempty"`
		Entrypoint []string          `json:"Entrypoint,omitempty"`
		WorkingDir string            `json:"WorkingDir,omitempty"`
		Labels     map[string]string `json:"Labels,omitempty"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// writer collects the files of a layout.
type writer struct {
	tw   *tar.Writer
	at   time.Time
	done map[string]bool
}

// Write writes images, one for each architecture, as an archive with the name ref, such as
// docker.io/library/lbproxy:1.0. It returns what ref refers to.
func Write(w io.Writer, ref string, at time.Time, images ...Image) (Descriptor, error) {
	out := &writer{tar.NewWriter(w), at.UTC().Truncate(time.Second), map[string]bool{}}
	if err := out.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return Descriptor{}, err
	}
	var all []Descriptor
	for _, img := range images {
		d, err := out.image(img)
		if err != nil {
			return Descriptor{}, fmt.Errorf("image for %s: %w", img.Arch, err)
		}
		all = append(all, d)
	}
	top := all[0]
	if len(all) > 1 {
		var err error
		if top, err = out.json(typeIndex, index{2, typeIndex, all}); err != nil {
			return Descriptor{}, err
		}
	}
	named := top
	named.Annotations = map[string]string{
		"io.containerd.image.name":          ref,
		"org.opencontainers.image.ref.name": ref,
	}
	text, err := json.Marshal(index{2, typeIndex, []Descriptor{named}})
	if err != nil {
		return Descriptor{}, err
	}
	if err := out.file("index.json", text); err != nil {
		return Descriptor{}, err
	}
	return top, out.tw.Close()
}

func (w *writer) image(img Image) (Descriptor, error) {
	c := config{Created: w.at, Architecture: img.Arch, OS: "linux"}
	c.Config.Env, c.Config.Entrypoint, c.Config.WorkingDir, c.Config.Labels = img.Env, img.Entrypoint, "/", img.Labels
	c.RootFS.Type = "layers"
	m := manifest{SchemaVersion: 2, MediaType: typeManifest}
	for _, layer := range img.Layers {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed) // its header has no time
		if _, err := z.Write(layer); err != nil {
			return Descriptor{}, err
		}
		if err := z.Close(); err != nil {
			return Descriptor{}, err
		}
		d, err := w.blob(typeLayer, packed.Bytes())
		if err != nil {
			return Descriptor{}, err
		}
		m.Layers = append(m.Layers, d)
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest(layer))
	}
	var err error
	if m.Config, err = w.json(typeConfig, c); err != nil {
		return Descriptor{}, err
	}
	d, err := w.json(typeManifest, m)
	d.Platform = &platform{img.Arch, "linux"}
	return d, err
}

func (w *writer) json(mediaType string, v any) (Descriptor, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return Descriptor{}, err
	}
	return w.blob(mediaType, text)
}

func (w *writer) blob(mediaType string, text []byte) (Descriptor, error) {
	d := Descriptor{MediaType: mediaType, Digest: digest(text), Size: int64(len(text))}
	name := "blobs/sha256/" + d.Digest[len("sha256:"):]
	if w.done[name] {
		return d, nil
	}
	w.done[name] = true
	return d, w.file(name, text)
}

func (w *writer) file(name string, text []byte) error {
	h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), ModTime: w.at, Typeflag: tar.TypeReg}
	if err := w.tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.tw.Write(text)
	return err
}

func digest(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}
