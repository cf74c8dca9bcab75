/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Finds sockets that are connected to what is gone. A program cannot end a socket
 * before Linux 6.5, and then only one of its own network namespace: the agent is
 * told which, and asks the kernel for it.
 */
#pragma once

#include "everysock.h"
#include "sock.h"
#include "vip.h"

/* What the agent should do with a socket. */
enum stale_action {
	STALE_DESTROY, /* end it */
	STALE_AGAIN,   /* look again: it was about to connect, as far as can be seen */
};

/* A socket as the kernel's sock_diag names it. IPv4 is v4-mapped, whatever the socket. */
struct stale_sock {
	__u64 cookie;
	struct addr local;
	struct addr peer; /* as the kernel has it: the backend */
	__be16 local_port;
	__be16 peer_port;
	__u32 device;  /* index of the one it is bound to, or 0 */
	__u32 netns;   /* inode number of its network namespace */
	__u32 backend; /* id */
	__u8 proto;
	__u8 action; /* enum stale_action */
	__u8 pad[6];
};
_Static_assert(sizeof(struct stale_sock) == 64, "layout is shared with Go");

/* A process, and the inode number of its network namespace. */
struct stale_process {
	__u32 pid;
	__u32 netns;
};

/* A socket that has counted an opening for as long is not about to connect. */
#define CONNECTING (1 * NSEC_PER_SEC)

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common {
	unsigned int inum;
};

struct net___stale { /* a flavour: lib/source.h has another view of struct net */
	struct ns_common ns;
};

struct possible_net {
	struct net___stale *net;
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	unsigned char skc_state;
	int skc_bound_dev_if;
	struct possible_net skc_net; /* possible_net_t */
	struct addr skc_v6_daddr;    /* struct in6_addr */
	struct addr skc_v6_rcv_saddr;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
};

struct nsproxy___stale {
	struct net___stale *net_ns;
};

struct task_struct___stale {
	int pid;
	int tgid;
	struct nsproxy___stale *nsproxy;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct___stale *task;
};

#pragma clang attribute pop

/*
 * Says whether what a socket is connected to is gone. TCP goes on without its VIP,
 * and without its backend as well unless the service wants it reset.
 */
static __noinline bool is_stale(const struct sock_state *st, __u8 proto)
{
	__u32 id = st->backend;
	struct backend *be = bpf_map_lookup_elem(&backends, &id);

	if (!be)
		return false;
	if (proto == IPPROTO_TCP)
		return be->gen == st->gen && be->state == BACKEND_RESET;
	if (proto != IPPROTO_UDP)
		return false;
	return !backend_serves(id, st->gen) ||
	       !vip_leads_to(&st->vip, st->vip_port, proto, be->service);
}

/* Says whether a socket that is not connected may have been asked to connect just now. */
static __always_inline bool is_connecting(const struct sock_state *st)
{
	return st->count == SOCK_OPEN && bpf_ktime_get_ns() - st->opened < CONNECTING;
}

/* Says where a socket is; an AF_INET6 one that talks IPv4 is found as one of IPv4. */
static __always_inline void stale_ends(struct stale_sock *s, struct sock *sk)
{
	struct sock_common *c = &sk->__sk_common;

	if (c->skc_family == AF_INET6)
		bpf_core_read(&s->peer, sizeof(s->peer), &c->skc_v6_daddr);
	if (c->skc_family == AF_INET6 && !addr_is_v4(&s->peer)) {
		bpf_core_read(&s->local, sizeof(s->local), &c->skc_v6_rcv_saddr);
	} else {
		s->peer = addr_v4(c->skc_daddr);
		s->local = addr_v4(c->skc_rcv_saddr);
	}
	s->local_port = bpf_htons(c->skc_num);
	s->peer_port = c->skc_dport;
	s->device = c->skc_bound_dev_if;
	s->netns = c->skc_net.net->ns.inum;
}

/*
 * Tells of one socket if it is stale. The connection of a UDP socket counts as ended
 * from here on: once it is destroyed nothing else would count it. That of TCP is
 * counted by the state machine.
 */
static __always_inline void stale_sock(struct seq_file *seq, struct sock *sk, struct sock_state *st)
{
	struct stale_sock s = {};

	if (!st || !sk || !st->vip_port)
		return;
	s.proto = sk->sk_protocol;
	if (!is_stale(st, s.proto))
		return;
	s.backend = st->backend;
	s.cookie = bpf_get_socket_cookie(sk);
	if (sk->__sk_common.skc_state != BPF_TCP_CLOSE) {
		if (!sk->__sk_common.skc_num) /* it was closed, and is yet to be freed */
			return;
		stale_ends(&s, sk);
		if (s.proto == IPPROTO_UDP)
			sock_closed(st, SOCK_ENDED);
	} else if (is_connecting(st)) {
		s.action = STALE_AGAIN;
	} else {
		return;
	}
	bpf_seq_write(seq, &s, sizeof(s));
}

/* Tells the cookie of a UDP socket that is connected to a backend. */
static __always_inline void assigned_sock(struct seq_file *seq, struct sock *sk,
					  struct sock_state *st)
{
	__u64 cookie;

	if (!st || !sk || !st->vip_port || sk->sk_protocol != IPPROTO_UDP ||
	    sk->__sk_common.skc_state == BPF_TCP_CLOSE)
		return;
	cookie = bpf_get_socket_cookie(sk);
	bpf_seq_write(seq, &cookie, sizeof(cookie));
}

/* Tells where a TCP socket is that is connected to a backend. */
static __always_inline void connected_sock(struct seq_file *seq, struct sock *sk,
					   struct sock_state *st)
{
	struct stale_sock s = {};

	if (!st || !sk || !st->vip_port || sk->sk_protocol != IPPROTO_TCP ||
	    !sk->__sk_common.skc_num || sk->__sk_common.skc_state == BPF_TCP_CLOSE ||
	    sk->__sk_common.skc_state == BPF_TCP_SYN_SENT)
		return;
	s.proto = sk->sk_protocol;
	stale_ends(&s, sk);
	bpf_seq_write(seq, &s, sizeof(s));
}

/* Tells which network namespace a process is in. Reading what is NULL gives 0. */
static __always_inline void task_netns(struct bpf_iter__task *ctx)
{
	struct task_struct___stale *task = ctx->task;
	struct stale_process p = {};

	if (!task || task->pid != task->tgid)
		return;
	p.pid = task->tgid;
	p.netns = task->nsproxy->net_ns->ns.inum;
	if (p.netns)
		bpf_seq_write(ctx->meta->seq, &p, sizeof(p));
}
