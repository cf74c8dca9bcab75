/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The connection table of the packet path. See struct conn for its entries. */
#pragma once

#include "packet.h"

#define PORT_TRIES 16
#define UNANSWERED_NSEC 900000000 /* clients send a SYN again after 1 s; clocks are coarse */

/* Idle times after which a connection is forgotten, in seconds. */
const volatile __u32 tcp_syn_timeout = 60;
const volatile __u32 tcp_timeout = 24 * 60 * 60;
const volatile __u32 tcp_half_closed_timeout = 60 * 60;
const volatile __u32 tcp_closed_timeout = 60;
const volatile __u32 udp_timeout = 30;
const volatile __u32 udp_stream_timeout = 120;

static __always_inline struct tuple tuple_inverse(const struct tuple *t, __u8 hook)
{
	return (struct tuple){
		.saddr = t->daddr,
		.daddr = t->saddr,
		.sport = t->dport,
		.dport = t->sport,
		.proto = t->proto,
		.hook = hook,
	};
}

/* Key of the reply entry that belongs to a forward entry. */
static __always_inline struct tuple reply_key(const struct tuple *fwd, const struct conn *c)
{
	return (struct tuple){
		.saddr = c->addr,
		.daddr = fwd->saddr,
		.sport = c->port,
		.dport = c->other_port,
		.proto = fwd->proto,
		.hook = HOOK_EGRESS,
	};
}

/* Key of the forward entry that belongs to a reply entry. */
static __always_inline struct tuple forward_key(const struct tuple *reply, const struct conn *c)
{
	return (struct tuple){
		.saddr = reply->daddr,
		.daddr = c->addr,
		.sport = c->other_port,
		.dport = c->port,
		.proto = reply->proto,
		.hook = HOOK_INGRESS,
	};
}

static __always_inline __u32 conn_signal(const struct conn *c)
{
	return (c->flags & CONN_SIGNAL) >> CONN_SIGNAL_SHIFT;
}

/* Counts the end of a connection. The bit CONN_CLOSED is set by exactly one caller. */
static __always_inline void conn_close(struct conn *fwd)
{
	__u32 old = __sync_fetch_and_or(&fwd->state, CONN_CLOSED);

	if (old & CONN_CLOSED)
		return;
	count_closed(fwd->backend, !(old & CONN_REPLIED));
	if (!conn_signal(fwd) || old & CONN_MEASURED)
		return;
	if (old & CONN_REPLIED)
		latency_add(fwd->backend, now_ms() - fwd->start, 1000 | LATENCY_AT_LEAST);
	else
		latency_add(fwd->backend, PICK_LATENCY_MAX, 1);
}

/* Adds bits to a forward entry's state, and counts the end when it has come. */
static __always_inline void conn_mark(struct conn *fwd, __u32 bits)
{
	const __u32 fins = CONN_FIN_CLIENT | CONN_FIN_BACKEND, ends = fins | CONN_CLOSED;
	__u32 close = bits & CONN_CLOSED;
	__u32 old = __sync_fetch_and_or(&fwd->state, bits & ~CONN_CLOSED);

	if (bits & ~old & CONN_REPLIED)
		count_answered(fwd->backend);
	if (bits & ends && !(old & ends) && old & CONN_REPLIED &&
	    conn_signal(fwd) == SIGNAL_LAST_BYTE) {
		latency_add(fwd->backend, now_ms() - fwd->start, 1000);
		__sync_fetch_and_or(&fwd->state, CONN_MEASURED);
	}
	if (close || ((old | bits) & fins) == fins)
		conn_close(fwd);
}

/* Removes every entry of a connection. Its end was counted before. */
static __noinline int conn_forget(const struct tuple *key, struct conn *fwd)
{
	struct tuple reply = reply_key(key, fwd);
	struct tuple snat;
	struct conn *c;

	if (bpf_map_lookup_elem(&conns, key) != fwd)
		return 0; /* somebody else removed it, and it may have started again */
	bpf_map_delete_elem(&conns, key);
	bpf_map_delete_elem(&conns, &reply);
	snat = tuple_inverse(&reply, HOOK_EGRESS);
	c = bpf_map_lookup_elem(&conns, &snat);
	if (!c)
		return 0;
	reply.hook = HOOK_INGRESS; /* makes it the key of unsnat */
	reply.daddr = c->addr;
	reply.dport = c->port;
	bpf_map_delete_elem(&conns, &snat);
	bpf_map_delete_elem(&conns, &reply);
	return 0;
}

/* Removes every entry of a connection and counts its end. */
static __always_inline void conn_remove(const struct tuple *key, struct conn *fwd)
{
	conn_close(fwd);
	conn_forget(key, fwd);
}

static __always_inline void conn_touch(struct conn *c)
{
	__u64 now = bpf_ktime_get_coarse_ns();

	if (now - c->last > NSEC_PER_SEC)
		WRITE_ONCE(c->last, now);
}

/* What a packet's flags say of its connection; side is CONN_FIN_CLIENT or CONN_FIN_BACKEND. */
static __always_inline __u32 conn_bits(const struct packet *pkt, __u32 side)
{
	__u32 bits = 0;

	if (pkt->tcp_flags & TCP_FIN)
		bits |= side;
	if (pkt->tcp_flags & TCP_RST)
		bits |= CONN_CLOSED;
	return bits;
}

/*
 * Notes that a client sent its SYN again. A copy that some device made comes sooner. An
 * entry that was not seen from its first packet on says nothing of its age.
 */
static __always_inline void conn_unanswered(const struct conn *fwd)
{
	if (fwd->flags & CONN_BEGUN && bpf_ktime_get_coarse_ns() - fwd->last > UNANSWERED_NSEC)
		suspect_note(fwd->backend, fwd->gen, SYMPTOM_UNANSWERED);
}

/* Follows the state of a connection on a packet that the client sent. */
static __always_inline void conn_request(const struct packet *pkt, struct conn *fwd)
{
	__u32 bits = conn_bits(pkt, CONN_FIN_CLIENT);

	conn_touch(fwd);
	if ((pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_ACK &&
	    (fwd->state & (CONN_REPLIED | CONN_ACKED)) == CONN_REPLIED)
		bits |= CONN_ACKED;
	if (bits)
		conn_mark(fwd, bits);
}

/*
 * Says whether a packet of a known connection starts a new one: a SYN after the
 * old one's end, or anything while the chosen backend has left without a word. So does
 * a SYN that nobody has answered when its backend no longer takes new connections or is
 * suspect: it may be sent again, or be another connection's, from a port that its client
 * has given up.
 */
static __always_inline bool conn_restarts(const struct packet *pkt, const struct conn *fwd)
{
	if (pkt->t.proto == IPPROTO_UDP)
		return !backend_serves(fwd->backend, fwd->gen);
	if ((pkt->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return false;
	if (fwd->state & CONN_CLOSED)
		return true;
	if (fwd->state & CONN_REPLIED)
		return false;
	conn_unanswered(fwd);
	return !backend_active(fwd->backend, fwd->gen) || is_suspect(fwd->backend);
}

/*
 * Says whether a TCP packet carries bytes for the application. The length is the IP
 * header's: Ethernet may pad the packet.
 */
static __always_inline bool has_payload(struct __sk_buff *skb, const struct packet *pkt)
{
	__u8 offset = 0;

	if (pkt->frag_later)
		return true;
	if (load(skb, pkt->l4 + 12, &offset, sizeof(offset)))
		return false;
	return l4_len(skb, pkt) > (offset >> 4) * 4;
}

/* Takes the time of a connection if this packet ends it. Returns CONN_MEASURED or 0. */
static __noinline int conn_measure(struct __sk_buff *skb, const struct packet *pkt, struct conn *c)
{
	if (pkt->tcp_flags & TCP_RST)
		return 0;
	if (conn_signal(c) == SIGNAL_FIRST_BYTE && !has_payload(skb, pkt))
		return 0;
	c->flags &= ~CONN_SIGNAL;
	latency_add(c->backend, now_us() - c->start, 1);
	return CONN_MEASURED;
}

/* Looks at a packet that a socket's time may end with, and removes the watch then. */
static __noinline int conn_watch(struct __sk_buff *skb, const struct packet *pkt, struct conn *c)
{
	struct tuple key = pkt->t;

	if (conn_measure(skb, pkt, c))
		bpf_map_delete_elem(&conns, &key);
	return TC_ACT_UNSPEC;
}

/* Notes that the backend reset a connection which nobody had ended. */
static __always_inline void conn_was_reset(const struct conn *fwd)
{
	const __u32 ended = CONN_FIN_CLIENT | CONN_FIN_BACKEND | CONN_CLOSED | CONN_RESET;

	if (!(fwd->flags & CONN_BEGUN) || fwd->state & ended)
		return;
	if (!(fwd->state & CONN_REPLIED))
		suspect_note(fwd->backend, fwd->gen, SYMPTOM_REFUSED);
	else if (fwd->state & CONN_ACKED)
		suspect_note(fwd->backend, fwd->gen, SYMPTOM_RESET);
}

/* Tells the forward entry what a packet of the backend said. */
static __noinline int conn_tell(const struct packet *pkt, const struct conn *c, __u32 bits)
{
	struct tuple key = forward_key(&pkt->t, c);
	struct conn *fwd = bpf_map_lookup_elem(&conns, &key);

	if (!fwd)
		return 0;
	if (pkt->tcp_flags & TCP_RST)
		conn_was_reset(fwd);
	conn_mark(fwd, bits);
	return 0;
}

/* Follows the state of a connection on a packet that the backend sent. */
static __always_inline void conn_reply(struct __sk_buff *skb, const struct packet *pkt,
				       struct conn *c)
{
	__u32 bits = conn_bits(pkt, CONN_FIN_BACKEND);

	conn_touch(c);
	if (c->flags & CONN_SIGNAL)
		bits |= conn_measure(skb, pkt, c);
	if (!(c->state & CONN_REPLIED) && !(pkt->tcp_flags & TCP_RST)) {
		c->state |= CONN_REPLIED;
		bits |= CONN_REPLIED;
	}
	if (bits)
		conn_tell(pkt, c, bits);
}

/*
 * Inserts an entry for a key that has none: 0, -EEXIST or another error. Before
 * Linux 6.4 the kernel returns an int, and the upper half of the register is not
 * its sign: a comparison in 64 bits would not find -EEXIST.
 */
static __always_inline int conn_insert(const struct tuple *key, const struct conn *c)
{
	return (int)bpf_map_update_elem(&conns, key, c, BPF_NOEXIST);
}

/*
 * Inserts the reply entry of a new connection. If another connection of the
 * client's port has it already, the client gets another port towards the
 * backend, which is stored in fwd.
 */
static __always_inline int conn_insert_reply(const struct tuple *key, struct conn *fwd,
					     __u32 signal)
{
	struct conn reply = {
		.addr = key->daddr,
		.port = key->dport,
		.other_port = key->sport,
		.backend = fwd->backend,
		.gen = fwd->gen,
		.last = fwd->last,
	};
	struct tuple rkey;
	int err;

	if (signal == SIGNAL_CONNECT || signal == SIGNAL_FIRST_BYTE) {
		reply.flags = signal << CONN_SIGNAL_SHIFT;
		reply.start = now_us();
	}

	for (int i = 0; i < PORT_TRIES; i++) {
		rkey = reply_key(key, fwd);
		err = conn_insert(&rkey, &reply);
		if (err != -EEXIST)
			return err ? -REASON_CONN_TABLE_FULL : 0;
		fwd->other_port = bpf_htons(1024 + pick_scale(bpf_get_prandom_u32(), 64512));
	}
	return -REASON_NO_SNAT_PORT;
}

/* Inserts the entry that makes egress masquerade; its port is chosen there. */
static __always_inline int conn_insert_snat(const struct tuple *key, const struct conn *fwd)
{
	struct tuple reply = reply_key(key, fwd);
	struct tuple skey = tuple_inverse(&reply, HOOK_EGRESS);
	struct conn snat = {
		.other_port = fwd->port,
		.flags = CONN_SNAT,
		.last = fwd->last,
	};

	return bpf_map_update_elem(&conns, &skey, &snat, BPF_ANY) ? -REASON_CONN_TABLE_FULL : 0;
}

/*
 * Tracks a new connection from key to the chosen backend. The forward entry is
 * inserted last, so a connection is complete when it can be found; of two
 * packets that race, the second finds the first one's entry. Returns 0 and
 * fills tr; 1 if that is another connection's entry; or a negative reason.
 */
static __noinline int conn_create(const struct tuple *key, const struct choice *c, bool snat,
				  struct translation *tr)
{
	struct conn fwd = {
		.addr = c->addr,
		.port = c->port,
		.other_port = key->sport,
		.flags = CONN_FORWARD,
		.backend = c->backend,
		.gen = c->gen,
		.last = bpf_ktime_get_coarse_ns(),
	};
	struct conn *other;
	struct tuple rkey;
	int err;

	if (c->flags & CHOICE_BEGUN)
		fwd.flags |= CONN_BEGUN;
	if (c->signal) {
		fwd.flags |= c->signal << CONN_SIGNAL_SHIFT;
		fwd.start = now_ms();
	}
	err = conn_insert_reply(key, &fwd, c->signal);
	if (err)
		return err;
	if (snat)
		err = conn_insert_snat(key, &fwd);
	if (!err && !conn_insert(key, &fwd)) {
		count_opened(c->backend, c->signal);
		*tr = (struct translation){ fwd.addr, fwd.port, fwd.other_port };
		return 0;
	}
	rkey = reply_key(key, &fwd);
	bpf_map_delete_elem(&conns, &rkey);
	rkey = tuple_inverse(&rkey, HOOK_EGRESS);
	bpf_map_delete_elem(&conns, &rkey);
	other = bpf_map_lookup_elem(&conns, key);
	if (!other)
		return -REASON_CONN_TABLE_FULL;
	*tr = (struct translation){ other->addr, other->port, other->other_port };
	return 1;
}
