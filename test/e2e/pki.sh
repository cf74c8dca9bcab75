#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes the certificates and kubeconfigs of a cluster.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
mkdir -p "$run/pki"
cd "$run/pki"

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }

authority() { # NAME
	key "$1"
	openssl req -x509 -new -key "$1.key" -subj "/CN=$1" -days 365 -out "$1.crt"
}

# certificate NAME SUBJECT [AUTHORITY [USAGE [ALTERNATIVE-NAMES]]]
certificate() {
	local by=${3:-ca}
	key "$1"
	openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
	openssl x509 -req -in "$1.csr" -CA "$by.crt" -CAkey "$by.key" -CAcreateserial -days 365 -out "$1.crt" -extfile <(
		echo "extendedKeyUsage=${4:-clientAuth}"
		echo keyUsage=digitalSignature,keyEncipherment
		[[ -z ${5:-} ]] || echo "subjectAltName=$5"
	) 2>/dev/null
}

kubeconfig() { # NAME, of a certificate
	cat >"$1.conf" <<-YAML
		apiVersion: v1
		kind: Config
		clusters: [{name: e2e, cluster: {server: "https://$cp4:6443", certificate-authority: $PWD/ca.crt}}]
		users: [{name: user, user: {client-certificate: $PWD/$1.crt, client-key: $PWD/$1.key}}]
		contexts: [{name: e2e, context: {cluster: e2e, user: user}}]
		current-context: e2e
	YAML
}

authority ca
authority front-proxy-ca
openssl genrsa -out sa.key 2048
openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null

names=DNS:localhost,IP:127.0.0.1,IP:$cp4,IP:$cp6,IP:10.96.0.1,IP:fd00:10:96::1
for name in kubernetes{,.default{,.svc{,.cluster.local}}}; do names+=,DNS:$name; done
certificate apiserver /CN=kube-apiserver ca serverAuth "$names"
certificate kubelet-client /O=system:masters/CN=kubelet-client
certificate front-proxy /CN=front-proxy-client front-proxy-ca
certificate admin /O=system:masters/CN=admin
for user in kube-controller-manager kube-scheduler kube-proxy; do
	certificate "$user" "/CN=system:$user"
	kubeconfig "$user"
done
kubeconfig admin
for ((n = 1; n <= nodes; n++)); do
	certificate "node$n" "/O=system:nodes/CN=system:node:node$n"
	kubeconfig "node$n"
done
