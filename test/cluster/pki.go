// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// pair is a certificate and its private key, both in PEM.
type pair struct{ cert, key []byte }

// write puts p in dir as name.crt and name.key.
func (p pair) write(dir, name string) error {
	if err := os.WriteFile(filepath.Join(dir, name+".crt"), p.cert, 0o644); err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".key"), p.key, 0o600); err != nil {
		return fmt.Errorf("key: %w", err)
	}
	return nil
}

// authority signs the certificates of one cluster.
type authority struct {
	pem  []byte // the authority's own certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("authority: key: %w", err)
	}
	t, err := template("lbproxy-test-ca", "")
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	t.IsCA, t.BasicConstraintsValid = true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("authority: sign: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("authority: parse: %w", err)
	}
	return &authority{pem: pemBlock("CERTIFICATE", der), cert: cert, key: key}, nil
}

// server returns a certificate that is valid for the names and addresses.
func (a *authority) server(cn string, names []string, addrs []netip.Addr) (pair, error) {
	t, err := template(cn, "")
	if err != nil {
		return pair{}, fmt.Errorf("server %s: %w", cn, err)
	}
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	t.DNSNames = names
	for _, ip := range addrs {
		t.IPAddresses = append(t.IPAddresses, net.IP(ip.AsSlice()))
	}
	return a.sign(t)
}

// client returns a certificate for the Kubernetes user in group.
func (a *authority) client(user, group string) (pair, error) {
	t, err := template(user, group)
	if err != nil {
		return pair{}, fmt.Errorf("client %s: %w", user, err)
	}
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return a.sign(t)
}

func (a *authority) sign(t *x509.Certificate) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, fmt.Errorf("%s: key: %w", t.Subject.CommonName, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return pair{}, fmt.Errorf("%s: sign: %w", t.Subject.CommonName, err)
	}
	keyPEM, err := keyBlock(key)
	if err != nil {
		return pair{}, fmt.Errorf("%s: %w", t.Subject.CommonName, err)
	}
	return pair{cert: pemBlock("CERTIFICATE", der), key: keyPEM}, nil
}

// template returns a certificate that is valid for a day; group may be empty.
func template(cn, group string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("serial: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: cn},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	if group != "" {
		t.Subject.Organization = []string{group}
	}
	return t, nil
}

// newSigningKey returns a PEM key for service account tokens. The API server
// reads the public half from the same file.
func newSigningKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	return keyBlock(key)
}

func keyBlock(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pemBlock("EC PRIVATE KEY", der), nil
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
