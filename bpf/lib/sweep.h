/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Removal of connections and flows that have been idle for too long. */
#pragma once

#include "conn.h"
#include "everysock.h"
#include "sock.h"
#include "vip.h"

static __always_inline __u64 conn_timeout(const struct tuple *t, __u32 state)
{
	__u32 s;

	if (t->proto == IPPROTO_UDP)
		s = state & CONN_REPLIED ? udp_stream_timeout : udp_timeout;
	else if (state & CONN_CLOSED)
		s = tcp_closed_timeout;
	else if (!(state & CONN_ACKED)) /* a SYN-ACK alone may be for a forged client */
		s = tcp_syn_timeout;
	else
		s = state & (CONN_FIN_CLIENT | CONN_FIN_BACKEND) ? tcp_half_closed_timeout :
								   tcp_timeout;
	return s * NSEC_PER_SEC;
}

/* Adds one to what is found open of a backend. */
static __always_inline void recount(__u32 backend)
{
	__u64 *n = bpf_map_lookup_elem(&recounts, &backend);

	if (n)
		__sync_fetch_and_add(n, 1);
}

static bool is_idle(__u64 now, __u64 last, __u64 timeout)
{
	return now > last && now - last > timeout;
}

/* Key of the reply entry of the connection that any other entry belongs to. */
static __always_inline struct tuple sibling_reply(const struct tuple *t, const struct conn *c)
{
	struct tuple r = *t;

	if (c->flags & CONN_SNAT)
		return tuple_inverse(t, HOOK_EGRESS);
	if (t->hook == HOOK_INGRESS) { /* unsnat */
		r.daddr = c->addr;
		r.dport = c->port;
		r.hook = HOOK_EGRESS;
	}
	return r;
}

/* Removes an entry that has lost its connection in a race. */
static __noinline int sweep_stray(const struct tuple *key, struct conn *c, __u64 now)
{
	struct tuple k = *key;
	struct tuple fkey = sibling_reply(&k, c);
	struct conn *reply;

	if (!is_idle(now, c->last, tcp_syn_timeout * NSEC_PER_SEC))
		return 0;
	reply = bpf_map_lookup_elem(&conns, &fkey);
	if (reply) {
		fkey = forward_key(&fkey, reply);
		if (bpf_map_lookup_elem(&conns, &fkey))
			return 0;
	}
	bpf_map_delete_elem(&conns, &k);
	return 0;
}

/* Says whether a backend resets its connections. */
static __always_inline bool backend_resets(__u32 id, __u32 gen)
{
	struct backend *be = bpf_map_lookup_elem(&backends, &id);

	return be && be->gen == gen && be->state == BACKEND_RESET;
}

/*
 * Says whether a connection of UDP leads nowhere: its backend is gone, or its VIP is
 * another service's or nobody's. One of TCP is marked, and goes on until it is answered.
 */
static __noinline bool conn_stale(const struct tuple *key, struct conn *c, __u64 now)
{
	__u32 id = c->backend;
	struct backend *be = bpf_map_lookup_elem(&backends, &id);

	if (!id || !be) /* it was direct */
		return false;
	if (key->proto == IPPROTO_UDP)
		return !backend_serves(id, c->gen) ||
		       !vip_leads_to(&key->daddr, key->dport, key->proto, be->service);
	if (key->proto == IPPROTO_TCP && !(c->state & CONN_RESET) && backend_resets(id, c->gen)) {
		conn_close(c);
		__sync_fetch_and_or(&c->state, CONN_RESET);
		WRITE_ONCE(c->last, now); /* it is remembered until the client asks */
	}
	return false;
}

/* The same of a flow of an unconnected socket. */
static __always_inline bool flow_stale(const struct udp_flow_key *key, const struct udp_flow *f)
{
	__u32 id = f->backend;
	struct backend *be = bpf_map_lookup_elem(&backends, &id);

	return !be || !backend_serves(id, f->gen) ||
	       !vip_leads_to(&key->addr, key->port, IPPROTO_UDP, be->service);
}

/* A connection lives while either direction is used; the others' entries follow. */
static long sweep_conn(void *map, const struct tuple *key, struct conn *c, struct sweep *s)
{
	struct tuple k, rkey;
	struct conn *reply;
	__u64 last;
	bool stale;

	(void)map;
	s->entries++;
	if (!(c->flags & CONN_FORWARD)) {
		sweep_stray(key, c, s->now);
		return 0;
	}
	k = *key;
	stale = conn_stale(&k, c, s->now);
	last = c->last;
	rkey = reply_key(&k, c);
	reply = bpf_map_lookup_elem(&conns, &rkey);
	if (reply && reply->last > last)
		last = reply->last;
	if (stale) {
		s->stale++;
	} else if (!is_idle(s->now, last, conn_timeout(&k, c->state))) {
		s->conns++;
		if (s->recount && !(c->state & CONN_CLOSED))
			recount(c->backend);
		return 0;
	}
	conn_remove(&k, c);
	s->expired++;
	return 0;
}

/* Flows are counted and expired by their half towards the VIP. */
static long sweep_flow(void *map, const struct udp_flow_key *key, struct udp_flow *f,
		       struct sweep *s)
{
	struct udp_flow_key k = *key, back_key;
	struct udp_flow *back;
	__u64 last = f->last;

	(void)map;
	if (k.direction == UDP_FROM_BACKEND) { /* goes with its other half, unless that is lost */
		if (is_idle(s->now, last, 2 * udp_stream_timeout * NSEC_PER_SEC))
			bpf_map_delete_elem(&udp_flows, &k);
		return 0;
	}
	back_key = udp_back_key(&k, f);
	back = bpf_map_lookup_elem(&udp_flows, &back_key);
	if (udp_back_is(back, &k) && back->last > last)
		last = back->last;
	if (flow_stale(&k, f)) {
		s->stale++;
	} else if (!is_idle(s->now, last, udp_stream_timeout * NSEC_PER_SEC)) {
		s->flows++;
		if (s->recount && !f->closed)
			recount(f->backend);
		return 0;
	}
	udp_forget(&k, f);
	s->expired++;
	return 0;
}

#define UNCONNECTED_AFTER (10 * NSEC_PER_SEC)

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sock_common {
	unsigned char skc_state;
};

struct sock {
	struct sock_common __sk_common;
};

#pragma clang attribute pop

/*
 * Counts a socket's connection if it is open. A UDP socket can be disconnected, and
 * a connect() can fail for want of a route, without any program being told: such a
 * socket is not connected, and its connection has ended.
 */
static __always_inline void recount_sock(struct sock *sk, struct sock_state *st)
{
	if (!st || !sk || st->count != SOCK_OPEN)
		return;
	if (sk->__sk_common.skc_state == BPF_TCP_CLOSE &&
	    bpf_ktime_get_ns() - st->opened > UNCONNECTED_AFTER)
		sock_closed(st, SOCK_ENDED);
	else
		recount(st->backend);
}

/* The agent writes the number of the recount where backend 0 would be counted. */
static __always_inline void recount_file(struct sock *sk, struct sock_state *st)
{
	__u32 zero = 0;
	__u64 *round = bpf_map_lookup_elem(&recounts, &zero);

	if (!st || !round || st->round == (__u8)*round)
		return;
	st->round = *round;
	recount_sock(sk, st);
}
