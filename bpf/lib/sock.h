/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Translation of sockets: once for each connection, nothing for each packet. */
#pragma once

#include "source.h"

/* A remote end as a socket call names it. */
struct remote {
	struct addr addr;
	__be16 port;
	__u8 proto;
};

/* How a socket's connection ended. */
enum sock_end {
	SOCK_ENDED,
	SOCK_FAILED,  /* it was refused, or nobody answered */
	SOCK_GAVE_UP, /* the client did not wait for an answer */
};

/*
 * Counts the end of a socket's connection. Two witnesses tell of it, the state
 * machine and the release; the swap lets one of them count.
 */
static __always_inline void sock_closed(struct sock_state *st, enum sock_end how)
{
	__u32 unit = how == SOCK_GAVE_UP ? 1000 | LATENCY_AT_LEAST : 1000;

	if (__sync_val_compare_and_swap(&st->count, SOCK_OPEN, SOCK_CLOSED) != SOCK_OPEN)
		return;
	count_closed(st->backend, how != SOCK_ENDED);
	if (how == SOCK_FAILED && st->signal)
		latency_add(st->backend, PICK_LATENCY_MAX, 1);
	else if (st->signal == SIGNAL_LAST_BYTE || (how == SOCK_GAVE_UP && st->signal))
		latency_add(st->backend, (bpf_ktime_get_ns() - st->opened) / 1000000, unit);
}

/* The error that the process of a socket gets next: 0 if there is none. */
static __always_inline int sock_error(struct bpf_sock *sk)
{
	struct sock___error *tcp = (void *)bpf_skc_to_tcp_sock(sk);

	return tcp ? BPF_CORE_READ(tcp, sk_err) : 0;
}

/* Says whether NodePorts answer at a loopback address. */
static __always_inline bool serves_localhost(const struct addr *a)
{
	const struct settings *set = settings_of_node();

	return set && set->localhost[a->w[2] ? 0 : 1];
}

/*
 * Looks up what the process of ctx asked for. Loopback addresses, and the
 * unspecified ones, which mean the same, are NodePorts only in the node's own
 * network namespace.
 */
static __always_inline int sock_frontend(struct bpf_sock_addr *ctx, const struct remote *to,
					 struct frontend *fe)
{
	struct frontend_key key = {
		.addr = to->addr,
		.port = to->port,
		.proto = to->proto,
	};

	if (!addr_is_unspecified(&key.addr) && !frontend_read(&key, fe))
		return 0;
	if (addr_is_loopback(&key.addr) || addr_is_unspecified(&key.addr)) {
		if (bpf_get_netns_cookie(ctx) != host_netns || !serves_localhost(&key.addr))
			return -ENOENT;
	} else if (!is_node_addr(&key.addr)) {
		return -ENOENT;
	}
	return frontend_nodeport(&key, fe);
}

static __always_inline __u32 inside_scope(const struct frontend *fe)
{
	return fe->flags & FE_INSIDE_LOCAL ? SCOPE_LOCAL : SCOPE_CLUSTER;
}

/* What is known of a socket's connection before it has connected. */
static __always_inline struct tuple sock_flow(struct bpf_sock_addr *ctx, const struct remote *to)
{
	struct tuple flow = {
		.daddr = to->addr,
		.dport = to->port,
		.proto = to->proto,
	};

	sock_source(ctx, &flow);
	return flow;
}

/* Chooses by who the caller is. */
static __noinline int sock_choose_by_flow(struct bpf_sock_addr *ctx, const struct remote *to,
					  const struct frontend *fe, struct choice *c)
{
	struct tuple flow = sock_flow(ctx, to);

	if (fe->flags & FE_AFFINITY &&
	    !affinity_find(fe->service, inside_scope(fe), &flow.saddr, c))
		return 0;
	return choose_static(fe->service, inside_scope(fe), &flow, c);
}

/* Makes the caller keep what was chosen. */
static __noinline int sock_keep(struct bpf_sock_addr *ctx, const struct remote *to,
				const struct frontend *fe, struct choice *c)
{
	struct tuple flow = sock_flow(ctx, to);

	return affinity_keep(fe->service, inside_scope(fe), &flow.saddr, c);
}

/* Says whether the caller may use a frontend. */
static __noinline bool sock_allowed(struct bpf_sock_addr *ctx, const struct remote *to,
				    const struct frontend *fe)
{
	struct tuple flow = sock_flow(ctx, to);

	return source_allowed(fe->service, &flow.saddr);
}

/*
 * Chooses a backend for a socket. Who the caller is has to be found out only if it
 * matters. One that is kept out goes on to the VIP, where the packet path knows the
 * source for certain.
 */
static __always_inline int sock_choose(struct bpf_sock_addr *ctx, const struct remote *to,
				       const struct frontend *fe, struct choice *c)
{
	int err = NEEDS_FLOW;

	if (fe->flags & FE_RANGED && !sock_allowed(ctx, to, fe))
		return -REASON_SOURCE_RANGE;
	if (!(fe->flags & FE_AFFINITY))
		err = choose_static(fe->service, inside_scope(fe), NULL, c);
	if (err == NEEDS_FLOW)
		err = sock_choose_by_flow(ctx, to, fe, c);
	if (err == NEEDS_LOAD)
		err = choose_by_load(c);
	if (err == NEEDS_OTHER)
		err = choose_other(fe->service, c);
	if (!err && fe->flags & FE_AFFINITY && !(c->flags & CHOICE_PASSING))
		sock_keep(ctx, to, fe, c);
	return err;
}

/*
 * Refuses what is sent to a port that a cluster IP has not. A UDP socket may connect:
 * getaddrinfo() does so to learn a source address, and sends nothing.
 */
static __noinline int sock_unknown(const struct remote *to, __u8 proto)
{
	if (to->proto != proto || !is_cluster_ip(&to->addr))
		return 0;
	return count_drop(REASON_UNKNOWN_PORT);
}

/* Remembers with the socket what was chosen, and counts it. */
static __always_inline void sock_remember(struct sock_state *st, const struct remote *vip,
					  const struct choice *c)
{
	st->vip = vip->addr;
	st->vip_port = vip->port;
	st->peer = c->addr;
	st->peer_port = c->port;
	st->backend = c->backend;
	st->gen = c->gen;
	st->signal = vip->proto == IPPROTO_TCP ? c->signal : SIGNAL_NONE;
	st->opened = bpf_ktime_get_ns();
	WRITE_ONCE(st->count, SOCK_OPEN);
	count_opened(c->backend, c->signal);
}

/*
 * Translates a connect(). Returns 0 if to is what the socket should connect to
 * now, changed or not, or a negative reason for refusing.
 */
static __always_inline int sock_connect(struct bpf_sock_addr *ctx, struct remote *to)
{
	struct sock_state *st = bpf_sk_storage_get(&sock_states, ctx->sk, 0, 0);
	struct choice c = {};
	struct frontend fe;
	int err;

	if (st) { /* connected before: that connection has ended */
		sock_closed(st, SOCK_ENDED);
		st->vip_port = 0;
		st->signal = SIGNAL_NONE;
	}
	if (sock_frontend(ctx, to, &fe))
		return sock_unknown(to, IPPROTO_TCP);
	err = sock_choose(ctx, to, &fe, &c);
	if (err)
		return err;
	if (!st)
		st = bpf_sk_storage_get(&sock_states, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (st) {
		sock_remember(st, to, &c);
	} else {
		pick_undo(c.backend);
		count_drop(REASON_SOCK_STATE);
	}
	to->addr = c.addr;
	to->port = c.port;
	return 0;
}

/* Undoes the translation of a connected socket's remote end, if it is ours. */
static __always_inline bool sock_original(const struct sock_state *st, struct remote *r)
{
	if (!st->vip_port || st->peer_port != r->port || !addr_equal(&st->peer, &r->addr))
		return false;
	r->addr = st->vip;
	r->port = st->vip_port;
	return true;
}

/* Key of the half of a flow that finds the VIP again. */
static __always_inline struct udp_flow_key udp_back_key(const struct udp_flow_key *key,
							const struct udp_flow *flow)
{
	return (struct udp_flow_key){
		.cookie = key->cookie,
		.addr = flow->addr,
		.port = flow->port,
		.direction = UDP_FROM_BACKEND,
	};
}

/* Two VIPs may lead a socket to one backend; the half belongs to the last one used. */
static __always_inline bool udp_back_is(const struct udp_flow *back, const struct udp_flow_key *key)
{
	return back && back->port == key->port && addr_equal(&back->addr, &key->addr);
}

/* Removes both halves of a flow and counts its end. */
static __always_inline void udp_forget(const struct udp_flow_key *key, struct udp_flow *flow)
{
	struct udp_flow_key back_key = udp_back_key(key, flow);
	struct udp_flow *back = bpf_map_lookup_elem(&udp_flows, &back_key);

	if (bpf_map_lookup_elem(&udp_flows, key) != flow)
		return; /* somebody else removed it, and it may have started again */
	if (!__sync_val_compare_and_swap(&flow->closed, 0, 1))
		count_closed(flow->backend, false);
	if (udp_back_is(back, key))
		bpf_map_delete_elem(&udp_flows, &back_key);
	bpf_map_delete_elem(&udp_flows, key);
}

/* Makes answers of the flow's backend come from the flow's VIP. */
static __always_inline int udp_claim(const struct udp_flow_key *key, const struct udp_flow *flow)
{
	struct udp_flow_key back_key = udp_back_key(key, flow);
	struct udp_flow back = {
		.last = flow->last,
		.addr = key->addr,
		.port = key->port,
	};

	return bpf_map_update_elem(&udp_flows, &back_key, &back, BPF_ANY);
}

/* Inserts both halves of a new flow and counts it. */
static __noinline int udp_remember(struct bpf_sock_addr *ctx, const struct udp_flow_key *key,
				   const struct choice *c)
{
	struct udp_flow flow = {
		.last = bpf_ktime_get_ns(),
		.addr = c->addr,
		.port = c->port,
		.backend = c->backend,
		.gen = c->gen,
	};
	struct udp_flow_key back_key = udp_back_key(key, &flow);
	struct sock_state *st;

	st = bpf_sk_storage_get(&sock_states, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!st)
		return count_drop(REASON_SOCK_STATE);
	if (udp_claim(key, &flow))
		return count_drop(REASON_UDP_FLOWS_FULL);
	if (bpf_map_update_elem(&udp_flows, key, &flow, BPF_ANY)) {
		bpf_map_delete_elem(&udp_flows, &back_key);
		return count_drop(REASON_UDP_FLOWS_FULL);
	}
	if (!st->flow_port) {
		st->flow_vip = key->addr;
		st->flow_port = key->port;
	}
	count_opened(c->backend, SIGNAL_NONE);
	return 0;
}

/* Refreshes a flow that is in use. */
static __always_inline void udp_touch(const struct udp_flow_key *key, struct udp_flow *flow)
{
	struct udp_flow_key back_key = udp_back_key(key, flow);

	WRITE_ONCE(flow->last, bpf_ktime_get_ns());
	if (!udp_back_is(bpf_map_lookup_elem(&udp_flows, &back_key), key))
		udp_claim(key, flow);
}

/*
 * A socket that is closed takes its first flow with it; most have but one. The
 * others are removed by the sweep.
 */
static __always_inline void udp_release(struct bpf_sock *sk, const struct sock_state *st)
{
	struct udp_flow_key key = {
		.cookie = bpf_get_socket_cookie(sk),
		.addr = st->flow_vip,
		.port = st->flow_port,
		.direction = UDP_TO_VIP,
	};
	struct udp_flow *flow = bpf_map_lookup_elem(&udp_flows, &key);

	if (flow)
		udp_forget(&key, flow);
}

/* A connected socket may name its own peer: that is no other connection. */
static __always_inline bool sock_names_peer(struct bpf_sock_addr *ctx, struct remote *to)
{
	struct sock_state *st = bpf_sk_storage_get(&sock_states, ctx->sk, 0, 0);

	if (!st || ctx->sk->state != BPF_TCP_ESTABLISHED || st->vip_port != to->port ||
	    !addr_equal(&st->vip, &to->addr))
		return false;
	to->addr = st->peer;
	to->port = st->peer_port;
	return true;
}

/*
 * Translates one datagram that names its destination. Datagrams of one socket to
 * one VIP keep their backend while it is usable.
 */
static __always_inline int sock_sendmsg(struct bpf_sock_addr *ctx, struct remote *to)
{
	struct udp_flow_key key = {
		.addr = to->addr,
		.port = to->port,
		.direction = UDP_TO_VIP,
	};
	struct udp_flow *flow;
	struct choice c = {};
	struct frontend fe;
	int err;

	if (sock_frontend(ctx, to, &fe))
		return sock_unknown(to, IPPROTO_UDP);
	if (sock_names_peer(ctx, to))
		return 0;
	key.cookie = bpf_get_socket_cookie(ctx);
	flow = bpf_map_lookup_elem(&udp_flows, &key);
	if (flow && backend_serves(flow->backend, flow->gen)) {
		udp_touch(&key, flow);
		to->addr = flow->addr;
		to->port = flow->port;
		return 0;
	}
	if (flow)
		udp_forget(&key, flow);
	err = sock_choose(ctx, to, &fe, &c);
	if (!err)
		err = udp_remember(ctx, &key, &c);
	if (err) {
		if (c.backend)
			pick_undo(c.backend);
		return err;
	}
	to->addr = c.addr;
	to->port = c.port;
	return 0;
}

/* Turns the source of a received datagram back into the VIP. Says if it changed. */
static __always_inline bool sock_recvmsg(struct bpf_sock_addr *ctx, struct remote *from)
{
	struct sock_state *st = bpf_sk_storage_get(&sock_states, ctx->sk, 0, 0);
	struct udp_flow_key key = {
		.addr = from->addr,
		.port = from->port,
		.direction = UDP_FROM_BACKEND,
	};
	struct udp_flow *flow;

	if (!st)
		return false;
	if (sock_original(st, from))
		return true;
	if (!st->flow_port)
		return false;
	key.cookie = bpf_get_socket_cookie(ctx);
	flow = bpf_map_lookup_elem(&udp_flows, &key);
	if (!flow)
		return false;
	WRITE_ONCE(flow->last, bpf_ktime_get_ns());
	from->addr = flow->addr;
	from->port = flow->port;
	return true;
}
