/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Translation of ICMP errors, so that path MTU discovery works through a VIP. */
#pragma once

#include "conn.h"

#define ICMP_LEN 8 /* of both versions' headers */

static __always_inline __u32 icmp_csum_offset(const struct packet *pkt)
{
	return pkt->l4 + 2;
}

/* Replaces bytes that an ICMP checksum covers. len is a multiple of 4, or 2. */
static __always_inline int icmp_store(struct __sk_buff *skb, const struct packet *pkt, __u32 off,
				      void *from, void *to, __u32 len)
{
	__s64 diff;

	if (len == 2) {
		if (bpf_l4_csum_replace(skb, icmp_csum_offset(pkt), *(__be16 *)from, *(__be16 *)to,
					2))
			return -REASON_REWRITE;
	} else {
		diff = bpf_csum_diff(from, len, to, len, 0);
		if (bpf_l4_csum_replace(skb, icmp_csum_offset(pkt), 0, diff, 0))
			return -REASON_REWRITE;
	}
	return bpf_skb_store_bytes(skb, off, to, len, 0) ? -REASON_REWRITE : 0;
}

/* Replaces one address of the packet that an error quotes. */
static __always_inline int icmp_inner_addr(struct __sk_buff *skb, const struct packet *pkt,
					   const struct packet *in, bool dst, struct addr *from,
					   struct addr *to)
{
	__u32 off = addr_offset(in, dst);

	if (!in->v4)
		return icmp_store(skb, pkt, off, from, to, sizeof(*to));
	/* The header's own checksum cancels its address in the ICMP checksum. */
	if (bpf_l3_csum_replace(skb, in->l3 + offsetof(struct iphdr, check), from->w[3], to->w[3],
				4))
		return -REASON_REWRITE;
	return bpf_skb_store_bytes(skb, off, &to->w[3], 4, 0) ? -REASON_REWRITE : 0;
}

/* Replaces an address of the error itself. */
static __always_inline int icmp_outer_addr(struct __sk_buff *skb, const struct packet *pkt,
					   bool dst, struct addr *from, struct addr *to)
{
	__u32 off = addr_offset(pkt, dst);
	__s64 diff;

	if (pkt->v4) {
		if (bpf_l3_csum_replace(skb, pkt->l3 + offsetof(struct iphdr, check), from->w[3],
					to->w[3], 4))
			return -REASON_REWRITE;
		return bpf_skb_store_bytes(skb, off, &to->w[3], 4, 0) ? -REASON_REWRITE : 0;
	}
	diff = bpf_csum_diff((__be32 *)from, sizeof(*from), (__be32 *)to, sizeof(*to), 0);
	if (bpf_l4_csum_replace(skb, icmp_csum_offset(pkt), 0, diff, BPF_F_PSEUDO_HDR))
		return -REASON_REWRITE;
	return bpf_skb_store_bytes(skb, off, to, sizeof(*to), 0) ? -REASON_REWRITE : 0;
}

/* Reads the packet that an error quotes: its addresses and ports. */
static __always_inline int icmp_parse_inner(struct __sk_buff *skb, const struct packet *pkt,
					    struct packet *in)
{
	__be16 ports[2];
	int err;

	in->l3 = pkt->l4 + ICMP_LEN;
	err = pkt->v4 ? parse_ipv4(skb, in) : parse_ipv6(skb, in);
	if (err || in->frag_later)
		return NOT_OURS;
	if (!is_balanced(in->t.proto))
		return NOT_OURS;
	if (bpf_skb_load_bytes(skb, in->l4, ports, sizeof(ports)))
		return NOT_OURS;
	in->t.sport = ports[0];
	in->t.dport = ports[1];
	return PARSED;
}

/*
 * Translates an ICMP error. A reply to the quoted packet would find an entry at
 * this hook; what it would do to the reply's destination (ingress) or source
 * (egress) is done to the quoted packet's other side.
 */
static __noinline int icmp_translate(struct __sk_buff *skb, struct packet *pkt)
{
	bool ingress = pkt->t.hook == HOOK_INGRESS;
	struct packet in = {};
	struct translation tr;
	struct addr *own;
	struct tuple key;
	struct conn *c;
	__u32 port_off;
	__be16 port;
	int err;

	if (icmp_parse_inner(skb, pkt, &in))
		return 0;
	key = tuple_inverse(&in.t, pkt->t.hook);
	c = bpf_map_lookup_elem(&conns, &key);
	if (!c || !c->port)
		return 0;
	tr = (struct translation){ c->addr, c->port, c->other_port };
	own = ingress ? &in.t.saddr : &in.t.daddr;
	port_off = in.l4 + (ingress ? 0 : 2);
	port = ingress ? in.t.sport : in.t.dport;
	err = icmp_inner_addr(skb, pkt, &in, !ingress, own, &tr.addr);
	if (!err)
		err = icmp_store(skb, pkt, port_off, &port, &tr.port, 2);
	port = ingress ? in.t.dport : in.t.sport;
	if (!err)
		err = icmp_store(skb, pkt, in.l4 + (ingress ? 2 : 0), &port, &tr.other_port, 2);
	if (err)
		return err;
	if (ingress)
		return icmp_outer_addr(skb, pkt, true, &pkt->t.daddr, &tr.addr);
	if (addr_equal(&pkt->t.saddr, own))
		return icmp_outer_addr(skb, pkt, false, &pkt->t.saddr, &tr.addr);
	return 0;
}
