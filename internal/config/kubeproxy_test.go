// SPDX-License-Identifier: Apache-2.0

package config

import (
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// kubeadmFile is what kubeadm writes for kube-proxy: every field, most of them zero.
const kubeadmFile = `
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection: {acceptContentTypes: "", burst: 0, contentType: "", kubeconfig: /var/lib/kube-proxy/kubeconfig.conf, qps: 0}
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null, tcpEstablishedTimeout: null, udpStreamTimeout: 0s, udpTimeout: 0s}
detectLocal: {bridgeInterface: "", interfaceNamePrefix: ""}
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: "", strictARP: false, syncPeriod: 0s, tcpFinTimeout: 0s, tcpTimeout: 0s, udpTimeout: 0s}
kind: KubeProxyConfiguration
logging: {flushFrequency: 0, options: {json: {infoBufferSize: "0"}, text: {infoBufferSize: "0"}}, verbosity: 0}
metricsBindAddress: ""
mode: ""
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: "", rootHnsEndpointName: "", sourceVip: ""}
`

// TestKubeadmsFileOfKubeProxy: it says where the API server and the pods are, and all
// else is default.
func TestKubeadmsFileOfKubeProxy(t *testing.T) {
	l, got, err := load(t, kubeadmFile, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Kubeconfig = "/var/lib/kube-proxy/kubeconfig.conf"
	want.ClusterCIDR = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if idle := l.Idle(); len(idle) > 0 {
		t.Errorf("fields without effect: %q, want none", idle)
	}
}

const fullKubeProxyFile = `
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: "2001:db8::1"
bindAddressHardFail: true
clientConnection: {kubeconfig: /k, qps: 5}
clusterCIDR: 10.244.0.0/16,fd00::/48
conntrack: {maxPerCore: 8, min: 9, tcpBeLiberal: true, tcpCloseWaitTimeout: 30m, tcpEstablishedTimeout: 0s, udpStreamTimeout: 2m, udpTimeout: 31s}
detectLocal: {bridgeInterface: cbr0, interfaceNamePrefix: veth}
detectLocalMode: BridgeInterface
enableProfiling: true
featureGates: {AllowServiceExternalIPs: false, SomethingElse: true}
healthzBindAddress: 0.0.0.0:20256
hostnameOverride: Worker-1
iptables: {localhostNodePorts: false, masqueradeAll: true, masqueradeBit: 7, minSyncPeriod: 1s, syncPeriod: 10s}
nftables: {masqueradeAll: false, masqueradeBit: 3, syncPeriod: 20s}
logging: {format: json, verbosity: 4}
mode: iptables
nodePortAddresses: [192.0.2.0/24, primary]
oomScoreAdj: -500
brandNew: 1
`

func TestEveryFieldOfKubeProxysFile(t *testing.T) {
	l, got, err := load(t, fullKubeProxyFile, nil, []string{"--iptables-backend=nft"})
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Kubeconfig, want.NodeName, want.Dataplane = "/k", "worker-1", IPTables
	want.ClusterCIDR = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00::/48")}
	want.DetectLocalMode, want.PodBridgeInterface = lb.LocalBridgeInterface, "cbr0"
	want.NodePortAddresses = lb.NodePortAddresses{Primary: true, Ranges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	want.MasqueradeAll, want.AllowExternalIPs, want.BindAddressHardFail, want.Profiling = true, false, true, true
	want.HealthzBindAddress = netip.MustParseAddrPort("0.0.0.0:20256")
	want.MetricsBindAddress = netip.MustParseAddrPort("[::1]:10249") // by the family of bindAddress
	want.OOMScoreAdj, want.SyncPeriod = -500, 10*time.Second
	want.LogLevel, want.LogFormat = slog.LevelDebug, JSON
	want.IPTables = IPTablesConfig{Backend: NFT, MasqueradeBit: 7}
	want.Conntrack = ConntrackConfig{
		MaxPerCore: 8, Min: 9, TCPCloseWait: 30 * time.Minute, TCPBeLiberal: true, UDPTimeout: 31 * time.Second, UDPStreamTimeout: 2 * time.Minute,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if idle := l.Idle(); !slices.Equal(idle, []string{"bindAddress", "brandNew"}) {
		t.Errorf("fields without effect: %q", idle)
	}
	if from := l.Sources()["clusterCIDR"]; !strings.HasSuffix(from, "c.yaml: clusterCIDR") {
		t.Errorf("cluster-cidr is from %q", from)
	}
}

// TestFieldsOfKubeProxysMode: those of another mode than the given one do not count.
func TestFieldsOfKubeProxysMode(t *testing.T) {
	l, got, err := load(t, strings.Replace(fullKubeProxyFile, "mode: iptables", "mode: nftables", 1), nil, []string{"--hostname-override=other"})
	if err != nil || got.MasqueradeAll || got.IPTables.MasqueradeBit != 3 || got.SyncPeriod != 20*time.Second || got.Dataplane != Auto || got.NodeName != "other" {
		t.Errorf("got %+v, %v: want what is said of nftables, auto, and the flag's name", got, err)
	}
	if l.ForeignMode() != modeNFTables {
		t.Errorf("mode %q, want it told", l.ForeignMode())
	}
}

func TestBadFilesOfKubeProxy(t *testing.T) {
	const head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
	for name, tc := range map[string]struct {
		file string
		want []string
	}{
		"value":     {head + "conntrack: {min: many}", []string{"conntrack-min (from ", "c.yaml: conntrack.min)", `"many": want a number`}},
		"type":      {head + "clusterCIDR: 10", []string{"cluster-cidr (from ", "want text, in quotes"}},
		"version":   {strings.Replace(head, "v1alpha1", "v9", 1), []string{"apiVersion (from ", "kubeproxy.config.k8s.io/v9: want kubeproxy.config.k8s.io/v1alpha1"}},
		"kind":      {"apiVersion: v1\nkind: ConfigMap\n", []string{"is a ConfigMap", "KubeProxyConfiguration"}},
		"of both":   {head + "nodeName: a", nil},
		"no prefix": {head + "detectLocalMode: InterfaceNamePrefix", []string{"InterfaceNamePrefix needs pod-interface-name-prefix"}},
	} {
		_, _, err := load(t, tc.file, nil, nil)
		if tc.want == nil {
			if err != nil {
				t.Errorf("%s: %v, want what kube-proxy does not know to be passed over", name, err)
			}
			continue
		}
		for _, want := range tc.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %v, want %q in it", name, err, want)
			}
		}
	}
}
