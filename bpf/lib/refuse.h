/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Refusals: TCP is answered with a reset, everything else with "port unreachable".
 * An ICMP error would do for TCP too, but a client that is still inside connect()
 * takes it for a soft error and goes on for a second; a reset waits for it.
 */
#pragma once

#include "packet.h"

/* A port unreachable quotes the refused packet's IP header and 8 bytes more. */
struct refusal4 {
	struct iphdr ip;
	struct icmphdr icmp;
	struct iphdr quoted;
	struct udphdr udp;
};

struct refusal6 {
	struct ipv6hdr ip;
	struct icmp6hdr icmp;
	struct ipv6hdr quoted;
	struct udphdr udp;
};

/* The part of ICMPv6's pseudo header that is not addresses. */
struct pseudo6 {
	__be32 len;
	__be32 next;
};

#define REFUSAL_HOPS 64

/* Makes room for len bytes between the link layer and a packet cut to keep bytes. */
static __always_inline int refusal_room(struct __sk_buff *skb, const struct packet *pkt, __u32 keep,
					__u32 len)
{
	if (bpf_skb_change_tail(skb, pkt->l3 + keep, 0))
		return -REASON_REWRITE;
	return bpf_skb_adjust_room(skb, len, BPF_ADJ_ROOM_MAC, 0) ? -REASON_REWRITE : 0;
}

static __always_inline int unreachable4(struct __sk_buff *skb, const struct packet *pkt)
{
	const __u32 quoted = sizeof(struct iphdr) + sizeof(struct udphdr);
	const __u32 body = sizeof(struct icmphdr) + quoted;
	struct refusal4 r = {};

	if (bpf_skb_load_bytes(skb, pkt->l3, &r.quoted, quoted))
		return -REASON_MALFORMED;
	r.ip.version = 4;
	r.ip.ihl = 5;
	r.ip.tot_len = bpf_htons(sizeof(r));
	r.ip.ttl = REFUSAL_HOPS;
	r.ip.protocol = IPPROTO_ICMP;
	r.ip.saddr = pkt->t.daddr.w[3];
	r.ip.daddr = pkt->t.saddr.w[3];
	r.ip.check = csum_fold(bpf_csum_diff(0, 0, (__be32 *)&r.ip, sizeof(r.ip), 0));
	r.icmp.type = ICMP_DEST_UNREACH;
	r.icmp.code = ICMP_PORT_UNREACH;
	r.icmp.checksum = csum_fold(bpf_csum_diff(0, 0, (__be32 *)&r.icmp, body, 0));
	if (refusal_room(skb, pkt, quoted, sizeof(r.ip) + sizeof(r.icmp)))
		return -REASON_REWRITE;
	return bpf_skb_store_bytes(skb, pkt->l3, &r, sizeof(r), 0) ? -REASON_REWRITE : 0;
}

static __always_inline int unreachable6(struct __sk_buff *skb, const struct packet *pkt)
{
	const __u32 quoted = sizeof(struct ipv6hdr) + sizeof(struct udphdr);
	const __u32 body = sizeof(struct icmp6hdr) + quoted;
	struct pseudo6 ph = { .len = bpf_htonl(body), .next = bpf_htonl(IPPROTO_ICMPV6) };
	struct refusal6 r = {};
	__s64 sum;

	if (bpf_skb_load_bytes(skb, pkt->l3, &r.quoted, quoted))
		return -REASON_MALFORMED;
	r.ip.version = 6;
	r.ip.payload_len = bpf_htons(body);
	r.ip.nexthdr = IPPROTO_ICMPV6;
	r.ip.hop_limit = REFUSAL_HOPS;
	__builtin_memcpy(&r.ip.saddr, &pkt->t.daddr, sizeof(r.ip.saddr));
	__builtin_memcpy(&r.ip.daddr, &pkt->t.saddr, sizeof(r.ip.daddr));
	r.icmp.icmp6_type = ICMPV6_DEST_UNREACH;
	r.icmp.icmp6_code = ICMPV6_PORT_UNREACH;
	sum = bpf_csum_diff(0, 0, (__be32 *)&ph, sizeof(ph), 0);
	sum = bpf_csum_diff(0, 0, (__be32 *)&r.ip.saddr, 2 * sizeof(struct in6_addr), sum);
	sum = bpf_csum_diff(0, 0, (__be32 *)&r.icmp, body, sum);
	r.icmp.icmp6_cksum = csum_fold(sum);
	if (refusal_room(skb, pkt, quoted, sizeof(r.ip) + sizeof(r.icmp)))
		return -REASON_REWRITE;
	return bpf_skb_store_bytes(skb, pkt->l3, &r, sizeof(r), 0) ? -REASON_REWRITE : 0;
}

/* Swaps source and destination of the network header. Sums stay as they are. */
static __always_inline int swap_addrs(struct __sk_buff *skb, const struct packet *pkt)
{
	const __u8 hops = REFUSAL_HOPS;
	struct addr pair[2] = { pkt->t.daddr, pkt->t.saddr };
	__be32 v4[2] = { pkt->t.daddr.w[3], pkt->t.saddr.w[3] };
	__u32 check = pkt->l3 + offsetof(struct iphdr, check);
	__be16 ttl; /* and the protocol behind it */

	if (!pkt->v4)
		return bpf_skb_store_bytes(skb, addr_offset(pkt, false), pair, sizeof(pair), 0) ||
		       bpf_skb_store_bytes(skb, pkt->l3 + offsetof(struct ipv6hdr, hop_limit),
					   &hops, sizeof(hops), 0);
	if (bpf_skb_load_bytes(skb, pkt->l3 + offsetof(struct iphdr, ttl), &ttl, sizeof(ttl)))
		return -REASON_MALFORMED;
	return bpf_l3_csum_replace(skb, check, ttl, bpf_htons(REFUSAL_HOPS << 8 | IPPROTO_TCP),
				   2) ||
	       bpf_skb_store_bytes(skb, pkt->l3 + offsetof(struct iphdr, ttl), &hops, sizeof(hops),
				   0) ||
	       bpf_skb_store_bytes(skb, addr_offset(pkt, false), v4, sizeof(v4), 0);
}

/*
 * Turns a TCP packet into the reset that answers it (RFC 9293, 3.10.7.1). Ports
 * swap without a change of the checksum; options stay, a reset may carry them.
 */
static __always_inline int tcp_reset(struct __sk_buff *skb, const struct packet *pkt)
{
	__u32 csum = pkt->l4 + offsetof(struct tcphdr, check);
	struct tcphdr from, to;

	if (bpf_skb_load_bytes(skb, pkt->l4, &from, sizeof(from)))
		return -REASON_MALFORMED;
	to = from;
	to.source = from.dest;
	to.dest = from.source;
	to.seq = from.ack ? from.ack_seq : 0;
	to.ack_seq = from.ack ? 0 : bpf_htonl(bpf_ntohl(from.seq) + 1);
	to.ack = !from.ack;
	to.rst = 1;
	to.syn = to.fin = to.psh = to.urg = to.ece = to.cwr = 0;
	to.window = 0;
	if (bpf_l4_csum_replace(skb, csum, 0,
				bpf_csum_diff((__be32 *)&from.seq, 12, (__be32 *)&to.seq, 12, 0),
				0))
		return -REASON_REWRITE;
	if (bpf_skb_store_bytes(skb, pkt->l4, &to, offsetof(struct tcphdr, check), 0))
		return -REASON_REWRITE;
	return swap_addrs(skb, pkt) ? -REASON_REWRITE : 0;
}

static __always_inline int swap_macs(struct __sk_buff *skb)
{
	struct ethhdr eth, back;

	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return -REASON_MALFORMED;
	__builtin_memcpy(back.h_dest, eth.h_source, ETH_ALEN);
	__builtin_memcpy(back.h_source, eth.h_dest, ETH_ALEN);
	back.h_proto = eth.h_proto;
	return bpf_skb_store_bytes(skb, 0, &back, sizeof(back), 0) ? -REASON_REWRITE : 0;
}

/*
 * Answers a packet at ingress from the address that it was sent to, back through
 * the device it came from. Packets with IP options get no answer. Returns a tc
 * action.
 */
static __noinline int refuse_packet(struct __sk_buff *skb, const struct packet *pkt)
{
	__u32 header = pkt->v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	int err;

	if (pkt->frag_later || pkt->l4 != pkt->l3 + header)
		return TC_ACT_SHOT;
	if (pkt->t.proto == IPPROTO_TCP)
		err = tcp_reset(skb, pkt);
	else
		err = pkt->v4 ? unreachable4(skb, pkt) : unreachable6(skb, pkt);
	if (!err && pkt->l3)
		err = swap_macs(skb);
	if (err) {
		count_drop(-err);
		return TC_ACT_SHOT;
	}
	return bpf_redirect(skb->ifindex, 0);
}
