#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Prints the options with which test/kernel brings this machine's iptables, in both
# backends, and the modules that its rules need.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

declare -A files
add() {
	files[$1]=$1
	while read -r lib; do
		files[$lib]=$lib
	done < <(ldd "$1" | grep -o '/[^ ]*')
}
for program in {iptables,ip6tables}-{nft,legacy}{,-save,-restore}; do
	add "$(command -v "$program")"
done
for lib in "${!files[@]}"; do
	case $lib in
	*/libxtables.so*) # looks for its extensions where it was built to
		for extension in "$(dirname "$(realpath "$lib")")"/xtables/*.so; do
			add "$extension"
		done
		;;
	esac
done
for path in "${!files[@]}"; do
	printf -- '-file %s:%s ' "$path" "$path"
done
printf -- '-modules %s\n' "$(
	IFS=,
	modules=(
		nf_tables nft_compat nft_chain_nat ip_tables iptable_nat iptable_filter ip6_tables ip6table_nat ip6table_filter
		ip_set ip_set_hash_ip ip_set_hash_ipport ip_set_hash_ipportnet ip_set_hash_netport xt_set
		xt_nat xt_MASQUERADE xt_mark xt_comment xt_conntrack xt_statistic xt_addrtype xt_tcpudp xt_bpf ipt_REJECT ip6t_REJECT
	)
	echo "${modules[*]}"
)"
