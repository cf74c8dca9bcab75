/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reading a packet's headers into a tuple, and writing a translation back. */
#pragma once

#include "admit.h"
#include "sctp.h"

#define IPV6_EXT_HEADERS 4 /* as many are walked */

enum tcp_flags {
	TCP_FIN = 1 << 0,
	TCP_SYN = 1 << 1,
	TCP_RST = 1 << 2,
	TCP_ACK = 1 << 4,
};

/* A parsed packet. Offsets are from the start of the packet's data. */
struct packet {
	struct tuple t;
	__u32 l3;
	__u32 l4;
	__u32 frag_id;
	__sum16 ip_check; /* of IPv4 */
	__u8 v4;
	__u8 tcp_flags;	 /* of SCTP: those of TCP that mean the same */
	__u8 icmp_error; /* t.proto is ICMP or ICMPv6, and it is an error */
	__u8 frag_first; /* more fragments follow */
	__u8 frag_later; /* no layer 4 header here */
};

enum parsed {
	PARSED,
	NOT_OURS, /* neither TCP, UDP or SCTP, nor an ICMP error */
};

#define DIRECT_MAX 512 /* headers that start later are read by the helper */

/*
 * Reads n bytes at off, 1, 2 or a multiple of 4: in place if they are in the linear
 * part of the packet, as headers nearly always are, otherwise by the helper.
 */
static __always_inline int load(struct __sk_buff *skb, __u32 off, void *to, const __u32 n)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	if (off >= DIRECT_MAX)
		return bpf_skb_load_bytes(skb, off, to, n);
	data += off;
	asm volatile("" : "+r"(data)); /* the verifier wants the sum that it checked */
	if (data + n > end)
		return bpf_skb_load_bytes(skb, off, to, n);
	if (n == 1)
		*(__u8 *)to = *(__u8 *)data;
	else if (n == 2)
		*(__u16 *)to = *(__u16 *)data;
#pragma unroll
	for (__u32 i = 0; i < n / 4; i++)
		((__u32 *)to)[i] = ((__u32 *)data)[i];
	return 0;
}

/* Reads an IPv4 header at pkt->l3. Returns an enum parsed or a negative reason. */
static __always_inline int parse_ipv4(struct __sk_buff *skb, struct packet *pkt)
{
	struct iphdr ip;
	__u16 frag;

	if (load(skb, pkt->l3, &ip, sizeof(ip)))
		return NOT_OURS;
	if (ip.version != 4 || ip.ihl < 5)
		return -REASON_MALFORMED;
	pkt->v4 = 1;
	pkt->ip_check = ip.check;
	pkt->t.saddr = addr_v4(ip.saddr);
	pkt->t.daddr = addr_v4(ip.daddr);
	pkt->t.proto = ip.protocol;
	pkt->l4 = pkt->l3 + ip.ihl * 4;
	frag = bpf_ntohs(ip.frag_off);
	pkt->frag_id = ip.id;
	pkt->frag_later = (frag & IP_OFFSET) != 0;
	pkt->frag_first = !pkt->frag_later && frag & IP_MF;
	return PARSED;
}

/* Reads a fragment header; returns the next header. */
static __always_inline int parse_fragment(struct __sk_buff *skb, struct packet *pkt, __u32 off)
{
	struct frag_hdr fh;
	__u16 frag;

	if (load(skb, off, &fh, sizeof(fh)))
		return -REASON_MALFORMED;
	frag = bpf_ntohs(fh.frag_off);
	pkt->frag_id = fh.identification;
	pkt->frag_later = (frag & IP6_OFFSET) != 0;
	pkt->frag_first = !pkt->frag_later && frag & IP6_MF;
	return fh.nexthdr;
}

static __always_inline bool is_ipv6_ext(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS ||
	       next == IPPROTO_FRAGMENT || next == IPPROTO_AH;
}

/* Reads an IPv6 header at pkt->l3 and walks its extension headers. */
static __always_inline int parse_ipv6(struct __sk_buff *skb, struct packet *pkt)
{
	struct ipv6_opt_hdr opt;
	struct ipv6hdr ip6;
	__u32 off;
	int next;

	if (load(skb, pkt->l3, &ip6, sizeof(ip6)))
		return NOT_OURS;
	if (ip6.version != 6)
		return -REASON_MALFORMED;
	__builtin_memcpy(&pkt->t.saddr, &ip6.saddr, sizeof(pkt->t.saddr));
	__builtin_memcpy(&pkt->t.daddr, &ip6.daddr, sizeof(pkt->t.daddr));
	next = ip6.nexthdr;
	off = pkt->l3 + sizeof(ip6);
	for (int i = 0; i < IPV6_EXT_HEADERS && is_ipv6_ext(next); i++) {
		if (next == IPPROTO_FRAGMENT) {
			next = parse_fragment(skb, pkt, off);
			if (next < 0)
				return next;
			off += sizeof(struct frag_hdr);
			continue;
		}
		if (load(skb, off, &opt, sizeof(opt)))
			return -REASON_MALFORMED;
		off += next == IPPROTO_AH ? (opt.hdrlen + 2) * 4 : (opt.hdrlen + 1) * 8;
		next = opt.nexthdr;
	}
	pkt->t.proto = next;
	pkt->l4 = off;
	return PARSED;
}

/* Takes the ports of a later fragment from what its first one left. */
static __always_inline int frag_recall(struct packet *pkt, const struct frag_key *key)
{
	struct frag_ports *p = bpf_map_lookup_elem(&frags, key);

	if (!p)
		return -REASON_FRAGMENT;
	pkt->t.sport = p->sport;
	pkt->t.dport = p->dport;
	return PARSED;
}

/* The TCP flags that mean what the first chunk of an SCTP packet does. */
static __always_inline __u8 sctp_flags(__u8 chunk)
{
	switch (chunk) {
	case SCTP_INIT:
		return TCP_SYN;
	case SCTP_INIT_ACK:
		return TCP_SYN | TCP_ACK;
	case SCTP_SHUTDOWN:
	case SCTP_SHUTDOWN_ACK:
		return TCP_FIN | TCP_ACK;
	case SCTP_ABORT:
	case SCTP_SHUTDOWN_COMPLETE:
		return TCP_RST;
	}
	return TCP_ACK;
}

static __always_inline int parse_ports(struct __sk_buff *skb, struct packet *pkt)
{
	__be16 ports[2];
	__u8 chunk;

	if (load(skb, pkt->l4, ports, sizeof(ports)))
		return -REASON_MALFORMED;
	pkt->t.sport = ports[0];
	pkt->t.dport = ports[1];
	if (pkt->t.proto == IPPROTO_TCP &&
	    load(skb, pkt->l4 + 13, &pkt->tcp_flags, sizeof(pkt->tcp_flags)))
		return -REASON_MALFORMED;
	if (pkt->t.proto == IPPROTO_SCTP) {
		if (load(skb, pkt->l4 + 12, &chunk, sizeof(chunk)))
			return -REASON_MALFORMED;
		pkt->tcp_flags = sctp_flags(chunk);
	}
	return PARSED;
}

static __always_inline bool is_icmp_error(const struct packet *pkt, __u8 type)
{
	if (!pkt->v4)
		return !(type & ICMPV6_INFOMSG_MASK);
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED ||
	       type == ICMP_PARAMETERPROB;
}

static __always_inline bool is_balanced(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_SCTP;
}

/* Reads the layer 4 header: ports and flags, or that it is an ICMP error. */
static __always_inline int parse_l4(struct __sk_buff *skb, struct packet *pkt)
{
	struct frag_key key;
	struct frag_ports p;
	__u8 type;
	int err;

	if (pkt->t.proto == (pkt->v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6)) {
		if (pkt->frag_later || load(skb, pkt->l4, &type, sizeof(type)))
			return NOT_OURS;
		pkt->icmp_error = is_icmp_error(pkt, type);
		return pkt->icmp_error ? PARSED : NOT_OURS;
	}
	if (!is_balanced(pkt->t.proto))
		return NOT_OURS;
	if (!pkt->frag_first && !pkt->frag_later)
		return parse_ports(skb, pkt);
	key = (struct frag_key){
		.saddr = pkt->t.saddr,
		.daddr = pkt->t.daddr,
		.id = pkt->frag_id,
		.proto = pkt->t.proto,
		.hook = pkt->t.hook,
	};
	if (pkt->frag_later)
		return frag_recall(pkt, &key);
	err = parse_ports(skb, pkt);
	if (err)
		return err;
	p.sport = pkt->t.sport;
	p.dport = pkt->t.dport;
	bpf_map_update_elem(&frags, &key, &p, BPF_ANY);
	return PARSED;
}

/* Parses the packet whose network header is at l3. */
static __always_inline int parse(struct __sk_buff *skb, __u32 l3, __u8 hook, struct packet *pkt)
{
	int err;

	pkt->l3 = l3;
	pkt->t.hook = hook;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		err = parse_ipv4(skb, pkt);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		err = parse_ipv6(skb, pkt);
	else
		return NOT_OURS;
	return err ? err : parse_l4(skb, pkt);
}

/* Offset of the address that hook replaces. */
static __always_inline __u32 addr_offset(const struct packet *pkt, bool dst)
{
	if (pkt->v4)
		return pkt->l3 +
		       (dst ? offsetof(struct iphdr, daddr) : offsetof(struct iphdr, saddr));
	return pkt->l3 + (dst ? offsetof(struct ipv6hdr, daddr) : offsetof(struct ipv6hdr, saddr));
}

/* Offset and flags of the layer 4 checksum. */
static __always_inline __u32 csum_offset(const struct packet *pkt, __u64 *flags)
{
	if (pkt->t.proto == IPPROTO_TCP)
		return pkt->l4 + offsetof(struct tcphdr, check);
	*flags = BPF_F_MARK_MANGLED_0; /* 0 is "no checksum" and stays so */
	return pkt->l4 + offsetof(struct udphdr, check);
}

/* Sums of 16 bit words in ones' complement, kept in 32 bits (RFC 1624). */
static __always_inline __u32 csum_add(__u32 a, __u32 b)
{
	a += b;
	return a + (a < b);
}

static __always_inline __sum16 csum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* What a checksum over from changes by when to takes its place. */
static __always_inline __u32 addr_diff(const struct addr *from, const struct addr *to)
{
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < 4; i++)
		sum = csum_add(csum_add(sum, ~from->w[i]), to->w[i]);
	return sum;
}

/* An IPv4 header from its checksum on: written in one piece. */
struct ipv4_end {
	__sum16 check;
	__be32 saddr;
	__be32 daddr;
} __attribute__((packed));

/* Replaces one address in the network header and in the checksums. */
static __always_inline int rewrite_addr(struct __sk_buff *skb, const struct packet *pkt, bool dst,
					const struct addr *to)
{
	const struct addr *from = dst ? &pkt->t.daddr : &pkt->t.saddr;
	__u32 diff = addr_diff(from, to);
	struct ipv4_end end;
	__u64 flags = 0;
	__u32 csum = csum_offset(pkt, &flags);

	if (!pkt->frag_later && pkt->t.proto != IPPROTO_SCTP &&
	    bpf_l4_csum_replace(skb, csum, 0, diff, flags | BPF_F_PSEUDO_HDR))
		return -REASON_REWRITE;
	if (!pkt->v4)
		return bpf_skb_store_bytes(skb, addr_offset(pkt, dst), to, sizeof(*to), 0) ?
			       -REASON_REWRITE :
			       0;
	end.saddr = dst ? pkt->t.saddr.w[3] : to->w[3];
	end.daddr = dst ? to->w[3] : pkt->t.daddr.w[3];
	end.check = csum_fold(csum_add((__u16)~pkt->ip_check, diff));
	return bpf_skb_store_bytes(skb, pkt->l3 + offsetof(struct iphdr, check), &end, sizeof(end),
				   0) ?
		       -REASON_REWRITE :
		       0;
}

/* Bytes of the packet from layer 4 on, as its IP header says. */
static __always_inline __u32 l4_len(struct __sk_buff *skb, const struct packet *pkt)
{
	__u32 at =
		pkt->v4 ? offsetof(struct iphdr, tot_len) : offsetof(struct ipv6hdr, payload_len);
	__be16 len = 0;

	if (load(skb, pkt->l3 + at, &len, sizeof(len)))
		return 0;
	at = pkt->l3 + bpf_ntohs(len) + (pkt->v4 ? 0 : sizeof(struct ipv6hdr));
	return at > pkt->l4 ? at - pkt->l4 : 0;
}

/*
 * Replaces both ports of SCTP. The checksum of a packet in fragments cannot be known
 * from one of them.
 */
static __noinline int rewrite_sctp(struct __sk_buff *skb, const struct packet *pkt, __u32 from,
				   __u32 to)
{
	__u32 csum, len = l4_len(skb, pkt);

	if (pkt->frag_first)
		return -REASON_FRAGMENT;
	if (!len || bpf_skb_load_bytes(skb, pkt->l4 + 8, &csum, sizeof(csum)))
		return -REASON_MALFORMED;
	if (csum) /* else it is computed later, over a field that must be 0 */
		csum ^= crc32c_first_word(from ^ to, len);
	if (bpf_skb_store_bytes(skb, pkt->l4, &to, sizeof(to), 0) ||
	    bpf_skb_store_bytes(skb, pkt->l4 + 8, &csum, sizeof(csum), 0))
		return -REASON_REWRITE;
	return 0;
}

/* Replaces both ports; those of later fragments are not there. */
static __always_inline int rewrite_ports(struct __sk_buff *skb, const struct packet *pkt,
					 __be16 sport, __be16 dport)
{
	union {
		__be16 port[2];
		__u32 word;
	} from = { .port = { pkt->t.sport, pkt->t.dport } }, to = { .port = { sport, dport } };
	__u64 flags = 0;
	__u32 csum = csum_offset(pkt, &flags);

	if (from.word == to.word || pkt->frag_later)
		return 0;
	if (pkt->t.proto == IPPROTO_SCTP)
		return rewrite_sctp(skb, pkt, from.word, to.word);
	if (bpf_l4_csum_replace(skb, csum, from.word, to.word, flags | 4))
		return -REASON_REWRITE;
	return bpf_skb_store_bytes(skb, pkt->l4, &to, sizeof(to), 0) ? -REASON_REWRITE : 0;
}

/* A translation, copied out of the table before the packet is touched. */
struct translation {
	struct addr addr;
	__be16 port;
	__be16 other_port;
};

/* Applies tr at hook: destination at ingress, source at egress. Returns 0 or -reason. */
static __always_inline int rewrite(struct __sk_buff *skb, const struct packet *pkt,
				   const struct translation *tr)
{
	bool dst = pkt->t.hook == HOOK_INGRESS;
	int err = rewrite_addr(skb, pkt, dst, &tr->addr);

	if (err)
		return err;
	return dst ? rewrite_ports(skb, pkt, tr->other_port, tr->port) :
		     rewrite_ports(skb, pkt, tr->port, tr->other_port);
}
