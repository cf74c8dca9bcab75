/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Removal of connections and flows that have been idle for too long. */
#pragma once

#include "conn.h"

static __always_inline __u64 conn_timeout(const struct tuple *t, __u32 state)
{
	__u32 s;

	if (t->proto == IPPROTO_UDP)
		s = state & CONN_REPLIED ? udp_stream_timeout : udp_timeout;
	else if (state & CONN_CLOSED)
		s = tcp_closed_timeout;
	else
		s = state & CONN_REPLIED ? tcp_timeout : tcp_syn_timeout;
	return s * NSEC_PER_SEC;
}

static bool is_idle(__u64 now, __u64 last, __u64 timeout)
{
	return now > last && now - last > timeout;
}

/* A connection lives while either direction is used; the others' entries follow. */
static long sweep_conn(void *map, const struct tuple *key, struct conn *c, struct sweep *s)
{
	struct tuple k, rkey;
	struct conn *reply;
	__u64 last;

	(void)map;
	s->entries++;
	if (!(c->flags & CONN_FORWARD))
		return 0;
	k = *key;
	last = c->last;
	rkey = reply_key(&k, c);
	reply = bpf_map_lookup_elem(&conns, &rkey);
	if (reply && reply->last > last)
		last = reply->last;
	if (!is_idle(s->now, last, conn_timeout(&k, c->state))) {
		s->conns++;
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
	struct udp_flow_key k;

	(void)map;
	if (key->direction != UDP_TO_VIP)
		return 0;
	if (!is_idle(s->now, f->last, udp_stream_timeout * NSEC_PER_SEC)) {
		s->flows++;
		return 0;
	}
	k = *key;
	udp_forget(&k, f);
	s->expired++;
	return 0;
}
