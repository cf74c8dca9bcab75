// Package lab builds a miniature cluster network on this machine out of
// network namespaces, for the demo, the root tests and the benchmarks.
//
//	client1 client2 backend1..3        remote1
//	     \     |      /                   |
//	      v-*  |  v-*                   v-remote1
//	        [ node ]                   [ node2 ]     [ outside ]
//	            \________ fabric (bridge) _|_____________/
//
// Everything is dual stack. Nothing has a route to the real machine: the
// namespaces are connected to each other only. Each host has one helper
// process, in that host's network namespace and cgroup, which owns the sockets
// that [Host.Serve], [Host.Dial] and friends ask for. The helper is this very
// executable, so main and TestMain must call [Main] first.
//
// Hosts on the node sit in the cgroup [Lab.CgroupRoot], where lbproxy attaches
// its socket hooks. Other machines (outside, node2 and its pods) and pods with
// [PodSpec.Unhooked] sit in a sibling cgroup that those hooks do not see.
package lab
