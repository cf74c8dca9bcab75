/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who a socket will be on the wire, before it has connected: routing chooses the
 * source address after connect() has been asked where to go. A bound socket knows
 * it. For others it is the first global address of the first device of its network
 * namespace that is not loopback: for a pod, the pod's address. The kernel's structs
 * are read with relocations (CO-RE).
 */
#pragma once

#include "admit.h"
#include "bpf_core_read.h"

#define DEVICES 8   /* as many are looked at */
#define ADDRESSES 4 /* of each */

#define IFF_LOOPBACK 0x8
#define RT_SCOPE_UNIVERSE 0

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct list_head {
	struct list_head *next;
};

struct net {
	__u64 net_cookie;
	struct list_head dev_base_head;
};

struct nsproxy {
	struct net *net_ns;
};

struct task_struct {
	struct nsproxy *nsproxy;
};

struct in_ifaddr {
	struct in_ifaddr *ifa_next;
	__be32 ifa_local;
	unsigned char ifa_scope;
};

struct in_device {
	struct in_ifaddr *ifa_list;
};

struct inet6_ifaddr {
	struct addr addr; /* struct in6_addr */
	struct list_head if_list;
};

struct inet6_dev {
	struct list_head addr_list;
};

struct sock___error { /* a flavour: programs that walk sockets have other views */
	int sk_err;
};

struct net_device {
	struct list_head dev_list;
	unsigned int flags;
	struct in_device *ip_ptr;
	struct inet6_dev *ip6_ptr;
};

#pragma clang attribute pop

/* The struct that a list element is in. */
#define LIST_ENTRY(ptr, type, member) \
	((type *)((char *)(ptr) - bpf_core_field_offset(type, member)))

/* Finds the first global IPv4 address of a device. */
static __always_inline bool device_addr4(struct net_device *dev, struct addr *a)
{
	struct in_device *in = BPF_CORE_READ(dev, ip_ptr);
	struct in_ifaddr *ifa;

	if (!in)
		return false;
	ifa = BPF_CORE_READ(in, ifa_list);
	for (int i = 0; i < ADDRESSES && ifa; i++) {
		if (BPF_CORE_READ(ifa, ifa_scope) == RT_SCOPE_UNIVERSE) {
			*a = addr_v4(BPF_CORE_READ(ifa, ifa_local));
			return true;
		}
		ifa = BPF_CORE_READ(ifa, ifa_next);
	}
	return false;
}

/* Finds the first global IPv6 address of a device. */
static __always_inline bool device_addr6(struct net_device *dev, struct addr *a)
{
	struct inet6_dev *in = BPF_CORE_READ(dev, ip6_ptr);
	struct list_head *head, *l;
	struct inet6_ifaddr *ifa;

	if (!in)
		return false;
	head = (struct list_head *)((char *)in +
				    bpf_core_field_offset(struct inet6_dev, addr_list));
	l = BPF_CORE_READ(head, next);
	for (int i = 0; i < ADDRESSES && l && l != head; i++) {
		ifa = LIST_ENTRY(l, struct inet6_ifaddr, if_list);
		if (bpf_core_read(a, sizeof(*a), &ifa->addr))
			return false;
		if ((a->w[0] & bpf_htonl(0xffc00000)) != bpf_htonl(0xfe800000)) /* link local */
			return true;
		l = BPF_CORE_READ(l, next);
	}
	return false;
}

/* Finds the first global address of a network namespace. */
static __always_inline bool netns_addr(struct net *net, bool v4, struct addr *a)
{
	struct list_head *head, *l;
	struct net_device *dev;

	head = (struct list_head *)((char *)net + bpf_core_field_offset(struct net, dev_base_head));
	l = BPF_CORE_READ(head, next);
	for (int i = 0; i < DEVICES && l && l != head; i++) {
		dev = LIST_ENTRY(l, struct net_device, dev_list);
		if (!(BPF_CORE_READ(dev, flags) & IFF_LOOPBACK) &&
		    (v4 ? device_addr4(dev, a) : device_addr6(dev, a)))
			return true;
		l = BPF_CORE_READ(l, next);
	}
	return false;
}

/* Fills a with the address of the caller's namespace, or with what stands for it. */
static __noinline int caller_addr(struct addr *a, __u64 cookie, bool v4)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	const struct settings *set = settings_of_node();
	struct net *net;
	__u64 id;

	if (!set)
		return 0;
	*a = set->host[v4 ? 0 : 1];
	if (cookie == host_netns && !addr_is_zero(a))
		return 0;
	net = BPF_CORE_READ(task, nsproxy, net_ns);
	/* A socket may have been handed over by another namespace. */
	if (net && BPF_CORE_READ(net, net_cookie) == cookie && netns_addr(net, v4, a))
		return 0;
	id = cookie ^ set->node;
	a->w[0] = 0;
	a->w[1] = 0;
	a->w[2] = id >> 32;
	a->w[3] = id;
	return 0;
}

/* Fills in the source of a flow. A port that is not known is a number of the socket's own. */
static __always_inline void sock_source(struct bpf_sock_addr *ctx, struct tuple *flow)
{
	struct bpf_sock *sk = ctx->sk;
	bool v4 = addr_is_v4(&flow->daddr);

	flow->sport = bpf_htons(sk->src_port);
	if (!flow->sport)
		flow->sport = bpf_get_socket_cookie(ctx);
	if (v4 && sk->src_ip4) {
		flow->saddr = addr_v4(sk->src_ip4);
		return;
	}
	if (!v4) {
		flow->saddr.w[0] = sk->src_ip6[0];
		flow->saddr.w[1] = sk->src_ip6[1];
		flow->saddr.w[2] = sk->src_ip6[2];
		flow->saddr.w[3] = sk->src_ip6[3];
		if (!addr_is_zero(&flow->saddr))
			return;
	}
	caller_addr(&flow->saddr, bpf_get_netns_cookie(ctx), v4);
}
