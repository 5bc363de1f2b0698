package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// pki DIR HOST_URL NODE_URL NODE_NAME ADDR... writes a CA, the certificates and
// the kubeconfigs. ADDRs go into the server certificates. What exists is kept.
func pki(args []string) {
	if len(args) < 4 {
		fail("usage: pki DIR HOST_URL NODE_URL NODE_NAME ADDR...")
	}
	dir, hostURL, nodeURL, node, addrs := args[0], args[1], args[2], args[3], args[4:]
	done := filepath.Join(dir, "done")
	if _, err := os.Stat(done); err == nil {
		return
	}
	check(os.MkdirAll(dir, 0o700))
	ca := authority{dir: dir}
	ca.issue("ca", "lab-ca", nil, nil)
	sans := append([]string{"localhost", "127.0.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", node}, addrs...)
	ca.issue("server", "kube-apiserver", nil, sans)
	ca.newKey("sa") // signs service account tokens
	for _, u := range []struct{ file, cn, org, url string }{
		{"admin", "admin", "system:masters", hostURL},
		{"apiserver-kubelet", "apiserver-kubelet", "system:masters", hostURL},
		{"kcm", "system:kube-controller-manager", "", hostURL},
		{"scheduler", "system:kube-scheduler", "", hostURL},
		{"kwok", "kwok", "system:masters", hostURL},
		{"kubelet", "system:node:" + node, "system:nodes", nodeURL},
		{"viewer", "viewer", "viewers", hostURL}, // a user with no rights until a test grants some
	} {
		ca.user(u.file, u.cn, u.org, u.url)
	}
	check(os.WriteFile(done, nil, 0o600))
}

// user DIR NAME URL writes DIR/users/NAME.kubeconfig for one more user, who has no
// rights and is in no group of ours. What exists is kept.
func user(args []string) {
	if len(args) != 3 {
		fail("usage: user DIR NAME URL")
	}
	dir, name, url := args[0], args[1], args[2]
	ca := authority{dir: dir}
	file := filepath.Join("users", name)
	if _, err := os.Stat(ca.path(file + ".kubeconfig")); err == nil {
		return
	}
	check(os.MkdirAll(ca.path("users"), 0o700))
	ca.load()
	ca.user(file, name, "", url)
}

// authority issues certificates and keeps all it makes in one directory.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

func (a *authority) write(name, typ string, der []byte) []byte {
	b := pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})
	check(os.WriteFile(a.path(name), b, 0o600))
	return b
}

func (a *authority) load() {
	read := func(name string) (text, der []byte) {
		text, err := os.ReadFile(a.path(name))
		check(err)
		block, _ := pem.Decode(text)
		if block == nil {
			fail(fmt.Sprintf("%s: no PEM in it", a.path(name)))
		}
		return text, block.Bytes
	}
	text, der := read("ca.crt")
	_, keyDER := read("ca.key")
	cert, err := x509.ParseCertificate(der)
	check(err)
	key, err := x509.ParseECPrivateKey(keyDER)
	check(err)
	a.cert, a.key, a.pem = cert, key, text
}

func (a *authority) newKey(name string) (crypto.Signer, []byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	der, err := x509.MarshalECPrivateKey(key)
	check(err)
	return key, a.write(name+".key", "EC PRIVATE KEY", der)
}

// issue writes NAME.crt and NAME.key, and returns them; the first is the authority's own.
func (a *authority) issue(name, cn string, orgs, sans []string) (crt, key []byte) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	check(err)
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: cn, Organization: orgs},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(5, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, s := range sans {
		if ip := net.ParseIP(s); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, s)
		}
	}
	signer, keyPEM := a.newKey(name)
	root := a.cert == nil
	if root {
		t.IsCA, t.BasicConstraintsValid, t.KeyUsage, t.ExtKeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature, nil
		a.cert, a.key = t, signer
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, signer.Public(), a.key)
	check(err)
	crt = a.write(name+".crt", "CERTIFICATE", der)
	if root {
		a.cert, err = x509.ParseCertificate(der)
		check(err)
		a.pem = crt
	}
	return crt, keyPEM
}

// user writes FILE.kubeconfig for the user CN of the group ORG (none if empty).
func (a *authority) user(file, cn, org, url string) {
	var orgs []string
	if org != "" {
		orgs = []string{org}
	}
	crt, key := a.issue(file, cn, orgs, nil)
	c := clientcmdapi.NewConfig()
	c.Clusters["lab"] = &clientcmdapi.Cluster{Server: url, CertificateAuthorityData: a.pem}
	c.AuthInfos[cn] = &clientcmdapi.AuthInfo{ClientCertificateData: crt, ClientKeyData: key}
	c.Contexts["lab"] = &clientcmdapi.Context{Cluster: "lab", AuthInfo: cn, Namespace: "default"}
	c.CurrentContext = "lab"
	check(clientcmd.WriteToFile(*c, a.path(file+".kubeconfig")))
}
