/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The source address and port of masqueraded connections, chosen at egress. */
#pragma once

#include "conn.h"

/* Range for masqueraded source ports, host order; the agent keeps it apart from
 * the range that the node's own sockets use. */
const volatile __u16 snat_port_min = 1024;
const volatile __u16 snat_port_max = 32767;

/* Says whether a socket of this node has the port that unsnat would take. */
static __noinline bool port_taken(struct __sk_buff *skb, const struct tuple *unsnat)
{
	struct bpf_sock_tuple st = {};
	struct bpf_sock *sk;
	__u32 len;

	if (addr_is_v4(&unsnat->saddr)) {
		st.ipv4.saddr = unsnat->saddr.w[3];
		st.ipv4.daddr = unsnat->daddr.w[3];
		st.ipv4.sport = unsnat->sport;
		st.ipv4.dport = unsnat->dport;
		len = sizeof(st.ipv4);
	} else {
		__builtin_memcpy(st.ipv6.saddr, &unsnat->saddr, sizeof(st.ipv6.saddr));
		__builtin_memcpy(st.ipv6.daddr, &unsnat->daddr, sizeof(st.ipv6.daddr));
		st.ipv6.sport = unsnat->sport;
		st.ipv6.dport = unsnat->dport;
		len = sizeof(st.ipv6);
	}
	if (unsnat->proto == IPPROTO_SCTP) /* no program can ask for its sockets */
		return false;
	if (unsnat->proto == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(skb, &st, len, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(skb, &st, len, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/*
 * Says whether the end that unsnat would take is a frontend. A backend's process
 * that answers with sendmsg() would be balanced, as any that sends there.
 */
static __noinline bool port_served(const struct tuple *unsnat)
{
	struct frontend_key key = {
		.addr = unsnat->daddr,
		.port = unsnat->dport,
		.proto = unsnat->proto,
	};
	struct frontend fe;

	if (unsnat->proto != IPPROTO_UDP) /* an accepted connection is not looked up */
		return false;
	return !frontend_read(&key, &fe) || !frontend_nodeport(&key, &fe);
}

/* The node's address for packets that leave through the device of skb. */
static __always_inline int snat_addr(struct __sk_buff *skb, const struct packet *pkt,
				     struct addr *addr)
{
	__u32 ifindex = skb->ifindex;
	struct device *dev = bpf_map_lookup_elem(&devices, &ifindex);

	if (!dev)
		return -REASON_NO_SNAT_ADDRESS;
	*addr = pkt->v4 ? dev->v4 : dev->v6;
	if (addr_is_zero(addr))
		return -REASON_NO_SNAT_ADDRESS;
	return 0;
}

/*
 * Frees the port of an unsnat entry whose connection has ended but is still
 * remembered. Says if it did.
 */
static __noinline bool snat_reuse(const struct tuple *unsnat)
{
	struct conn *c = bpf_map_lookup_elem(&conns, unsnat);
	struct tuple key;

	if (!c)
		return true;
	key = *unsnat; /* becomes the key of reply, then that of forward */
	key.daddr = c->addr;
	key.dport = c->port;
	key.hook = HOOK_EGRESS;
	c = bpf_map_lookup_elem(&conns, &key);
	if (!c)
		return false;
	key.saddr = key.daddr;
	key.daddr = c->addr;
	key.sport = c->other_port;
	key.dport = c->port;
	key.hook = HOOK_INGRESS;
	c = bpf_map_lookup_elem(&conns, &key);
	if (!c || !(c->state & CONN_CLOSED))
		return false;
	conn_forget(&key, c);
	return true;
}

/*
 * Inserts the entry for replies to the masqueraded packet t, whose source is to be
 * from and port. Returns 0, -EEXIST if that port is taken, or another error. Not
 * static: it is verified once, not for each try. Keys and values are its own: before
 * Linux 6.2 they must be on the stack.
 */
__noinline int snat_try(struct __sk_buff *skb, const struct tuple *t, const struct addr *from,
			__u32 port)
{
	struct tuple unsnat = { .dport = bpf_htons(port), .hook = HOOK_INGRESS };
	struct conn back = {};
	int err;

	if (!t || !from)
		return -EINVAL;
	unsnat.saddr = t->daddr;
	unsnat.daddr = *from;
	unsnat.sport = t->dport;
	unsnat.proto = t->proto;
	if (port_served(&unsnat) || port_taken(skb, &unsnat))
		return -EEXIST;
	back.addr = t->saddr;
	back.port = t->sport;
	back.other_port = t->dport;
	back.last = bpf_ktime_get_coarse_ns();
	err = conn_insert(&unsnat, &back);
	if (err == -EEXIST && snat_reuse(&unsnat))
		err = conn_insert(&unsnat, &back);
	return err;
}

/* Inserts the entry for replies to a masqueraded packet, at the first free port. */
static __always_inline int snat_insert(struct __sk_buff *skb, const struct packet *pkt,
				       struct tuple *unsnat)
{
	__u32 port, range = snat_port_max - snat_port_min + 1;
	int err;

	for (int i = 0; i < PORT_TRIES; i++) {
		port = snat_port_min + pick_scale(bpf_get_prandom_u32(), range);
		err = snat_try(skb, &pkt->t, &unsnat->daddr, port);
		unsnat->dport = bpf_htons(port);
		if (!err)
			return 0;
		if (err != -EEXIST)
			return -REASON_CONN_TABLE_FULL;
	}
	return -REASON_NO_SNAT_PORT;
}

/*
 * Says whether the backend has answered a connection that has no source of ours yet: its
 * first packets left through a device that had no program then, as a new pod's has not.
 * The backend knows the client by its own address, and would reset it under another.
 */
static __noinline bool snat_late(const struct packet *pkt)
{
	struct tuple key = tuple_inverse(&pkt->t, HOOK_EGRESS);
	struct conn *reply = bpf_map_lookup_elem(&conns, &key);

	return reply && reply->state & CONN_REPLIED;
}

/*
 * Chooses the source of a masqueraded connection at its first packet. c is the
 * snat entry. Of two packets that race, one stores its port; the other uses it.
 */
static __noinline int snat_allocate(struct __sk_buff *skb, const struct packet *pkt, struct conn *c)
{
	struct tuple unsnat = tuple_inverse(&pkt->t, HOOK_INGRESS);
	union {
		__u32 word;
		__be16 port[2]; /* port, other_port, as in struct conn */
	} from = {}, to = {};
	__u32 *ports = (__u32 *)&c->port;
	int err;

	err = snat_addr(skb, pkt, &unsnat.daddr);
	if (!err)
		err = snat_insert(skb, pkt, &unsnat);
	if (err)
		return err;
	c->addr = unsnat.daddr;
	from.port[1] = to.port[1] = pkt->t.dport;
	to.port[0] = unsnat.dport;
	if (__sync_val_compare_and_swap(ports, from.word, to.word) != from.word)
		bpf_map_delete_elem(&conns, &unsnat);
	return 0;
}
