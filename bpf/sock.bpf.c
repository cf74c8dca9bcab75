//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Programs on the cgroup: they translate the sockets of every process below it,
 * pods included, when the process connects. Entry points only.
 */
#include "lib/sock.h"

char __license[] SEC("license") = "Dual BSD/GPL";

#define ALLOW 1
#define REFUSE 0

/* The remote end of an IPv4 call, as the context has it. */
static __always_inline struct remote remote4(struct bpf_sock_addr *ctx)
{
	struct remote r = {
		.port = ctx->user_port,
		.proto = ctx->protocol,
	};

	r.addr.w[2] = V4_MAPPED;
	r.addr.w[3] = ctx->user_ip4;
	return r;
}

static __always_inline struct remote remote6(struct bpf_sock_addr *ctx)
{
	struct remote r = {
		.port = ctx->user_port,
		.proto = ctx->protocol,
	};

	r.addr.w[0] = ctx->user_ip6[0];
	r.addr.w[1] = ctx->user_ip6[1];
	r.addr.w[2] = ctx->user_ip6[2];
	r.addr.w[3] = ctx->user_ip6[3];
	return r;
}

static __always_inline void set_remote4(struct bpf_sock_addr *ctx, const struct remote *r)
{
	ctx->user_ip4 = r->addr.w[3];
	ctx->user_port = r->port;
}

static __always_inline void set_remote6(struct bpf_sock_addr *ctx, const struct remote *r)
{
	ctx->user_ip6[0] = r->addr.w[0];
	ctx->user_ip6[1] = r->addr.w[1];
	ctx->user_ip6[2] = r->addr.w[2];
	ctx->user_ip6[3] = r->addr.w[3];
	ctx->user_port = r->port;
}

/*
 * Turns a reason into what the process sees. A call that should stay unanswered
 * goes on to the VIP, where the packet path drops it.
 */
static __always_inline int sock_verdict(int err)
{
	if (err == -REASON_NO_BACKEND_DROP || err == -REASON_SOURCE_RANGE)
		return ALLOW;
	bpf_set_retval(-ECONNREFUSED);
	return REFUSE;
}

SEC("cgroup/connect4")
int lb_connect4(struct bpf_sock_addr *ctx)
{
	struct remote r = remote4(ctx);
	int err = sock_connect(ctx, &r);

	if (err)
		return sock_verdict(err);
	set_remote4(ctx, &r);
	return ALLOW;
}

SEC("cgroup/connect6")
int lb_connect6(struct bpf_sock_addr *ctx)
{
	struct remote r = remote6(ctx);
	int err = sock_connect(ctx, &r);

	if (err)
		return sock_verdict(err);
	set_remote6(ctx, &r);
	return ALLOW;
}

SEC("cgroup/sendmsg4")
int lb_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct remote r = remote4(ctx);
	int err = sock_sendmsg(ctx, &r);

	if (err)
		return sock_verdict(err);
	set_remote4(ctx, &r);
	return ALLOW;
}

SEC("cgroup/sendmsg6")
int lb_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct remote r = remote6(ctx);
	int err = sock_sendmsg(ctx, &r);

	if (err)
		return sock_verdict(err);
	set_remote6(ctx, &r);
	return ALLOW;
}

SEC("cgroup/recvmsg4")
int lb_recvmsg4(struct bpf_sock_addr *ctx)
{
	struct remote r = remote4(ctx);

	if (sock_recvmsg(ctx, &r))
		set_remote4(ctx, &r);
	return ALLOW;
}

SEC("cgroup/recvmsg6")
int lb_recvmsg6(struct bpf_sock_addr *ctx)
{
	struct remote r = remote6(ctx);

	if (sock_recvmsg(ctx, &r))
		set_remote6(ctx, &r);
	return ALLOW;
}

SEC("cgroup/getpeername4")
int lb_getpeername4(struct bpf_sock_addr *ctx)
{
	struct sock_state *st = bpf_sk_storage_get(&sock_states, ctx->sk, 0, 0);
	struct remote r = remote4(ctx);

	if (st && sock_original(st, &r))
		set_remote4(ctx, &r);
	return ALLOW;
}

SEC("cgroup/getpeername6")
int lb_getpeername6(struct bpf_sock_addr *ctx)
{
	struct sock_state *st = bpf_sk_storage_get(&sock_states, ctx->sk, 0, 0);
	struct remote r = remote6(ctx);

	if (st && sock_original(st, &r))
		set_remote6(ctx, &r);
	return ALLOW;
}

SEC("cgroup/sock_release")
int lb_sock_release(struct bpf_sock *ctx)
{
	struct sock_state *st = bpf_sk_storage_get(&sock_states, ctx, 0, 0);

	if (!st)
		return ALLOW;
	/* Here before the state machine: a client that gave up connecting is a failure. */
	sock_closed(st, ctx->type == SOCK_STREAM && ctx->state == BPF_TCP_SYN_SENT ? SOCK_GAVE_UP :
										     SOCK_ENDED);
	if (st->flow_port)
		udp_release(ctx, st);
	return ALLOW;
}

/* A backend is no longer busy as soon as either side has ended the connection. */
static __always_inline bool has_ended(int state)
{
	return state == BPF_TCP_FIN_WAIT1 || state == BPF_TCP_CLOSE_WAIT || state == BPF_TCP_CLOSE;
}

/*
 * Key of the packets in which a socket's backend answers. To a pod they leave through
 * the pod's device, to a process of the node they come in.
 */
static __always_inline struct tuple watch_key(struct bpf_sock_ops *ctx, const struct sock_state *st)
{
	struct tuple key = {
		.saddr = st->peer,
		.sport = st->peer_port,
		.dport = bpf_htons(ctx->local_port),
		.proto = IPPROTO_TCP,
		.hook = bpf_get_netns_cookie(ctx) == host_netns ? HOOK_INGRESS : HOOK_EGRESS,
	};

	if (addr_is_v4(&st->peer)) {
		key.daddr = addr_v4(ctx->local_ip4);
		return key;
	}
	key.daddr.w[0] = ctx->local_ip6[0];
	key.daddr.w[1] = ctx->local_ip6[1];
	key.daddr.w[2] = ctx->local_ip6[2];
	key.daddr.w[3] = ctx->local_ip6[3];
	return key;
}

/*
 * Watches for the first packet of the backend that carries bytes: TCP tells programs
 * of segments on its slow path only, so the packet programs look out for it.
 */
static __always_inline void sock_watch(struct bpf_sock_ops *ctx, const struct sock_state *st)
{
	struct conn watch = {
		.flags = CONN_WATCH | SIGNAL_FIRST_BYTE << CONN_SIGNAL_SHIFT,
		.start = st->opened / 1000,
		.backend = st->backend,
		.gen = st->gen,
		.last = bpf_ktime_get_ns(),
	};
	struct tuple key = watch_key(ctx, st);
	struct conn *old = bpf_map_lookup_elem(&conns, &key);

	if (!old || old->flags & CONN_WATCH)
		bpf_map_update_elem(&conns, &key, &watch, old ? BPF_ANY : BPF_NOEXIST);
}

/*
 * Ends the watch of a connection that has ended. If it was not answered, or not where
 * a packet program could see it, it would have taken at least until now.
 */
static __always_inline void sock_unwatch(struct bpf_sock_ops *ctx, struct sock_state *st)
{
	struct tuple key = watch_key(ctx, st);
	struct conn *c = bpf_map_lookup_elem(&conns, &key);
	__u32 start = st->opened / 1000;

	st->signal = SIGNAL_NONE;
	if (!c || !(c->flags & CONN_WATCH) || c->start != start)
		return;
	bpf_map_delete_elem(&conns, &key);
	latency_add(st->backend, now_us() - start, 1 | LATENCY_AT_LEAST);
}

/* Counts a connection that is established, and measures it or starts to. */
static __always_inline void sock_established(struct bpf_sock_ops *ctx, struct sock_state *st)
{
	if (st->count != SOCK_OPEN)
		return;
	count_answered(st->backend);
	if (st->signal == SIGNAL_CONNECT)
		latency_add(st->backend, (bpf_ktime_get_ns() - st->opened) / 1000, 1);
	else if (st->signal == SIGNAL_FIRST_BYTE)
		sock_watch(ctx, st);
}

/* Says what the end of a connection speaks of, by the error that its process gets. */
static __always_inline __u32 sock_symptom(struct bpf_sock *sk, __u32 was)
{
	int err = sock_error(sk);

	if (was == BPF_TCP_ESTABLISHED)
		return err == ECONNRESET ? SYMPTOM_RESET : SYMPTOM_NONE;
	if (was != BPF_TCP_SYN_SENT)
		return SYMPTOM_NONE;
	switch (err) {
	case ECONNREFUSED: /* a reset, or ICMP said so */
		return SYMPTOM_REFUSED;
	case ENETUNREACH:
	case EHOSTUNREACH:
	case ETIMEDOUT:
		return SYMPTOM_UNANSWERED;
	}
	return SYMPTOM_NONE; /* the process gave up, or was made to */
}

/* Notes what became of a connection, unless its end is known already. */
static __always_inline void sock_note(const struct sock_state *st, __u32 kind)
{
	if (kind && st->count == SOCK_OPEN)
		suspect_note(st->backend, st->gen, kind);
}

/* Counts and measures what the state machine says has ended. */
static __always_inline void sock_ended(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
				       struct sock_state *st)
{
	__u32 was = ctx->args[0];

	if (ctx->args[1] == BPF_TCP_CLOSE)
		sock_note(st, sock_symptom(sk, was));
	sock_closed(st, was == BPF_TCP_SYN_SENT ? SOCK_FAILED : SOCK_ENDED);
	if (st->signal == SIGNAL_FIRST_BYTE)
		sock_unwatch(ctx, st);
}

SEC("sockops")
int lb_sock_ops(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct sock_state *st;

	if (!sk ||
	    (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB && ctx->op != BPF_SOCK_OPS_STATE_CB &&
	     ctx->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && ctx->op != BPF_SOCK_OPS_RTO_CB))
		return 1;
	st = bpf_sk_storage_get(&sock_states, sk, 0, 0);
	if (!st)
		return 1;
	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags |
						       BPF_SOCK_OPS_STATE_CB_FLAG |
						       BPF_SOCK_OPS_RTO_CB_FLAG);
	else if (ctx->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		sock_established(ctx, st);
	else if (ctx->op == BPF_SOCK_OPS_RTO_CB)
		sock_note(st, ctx->state == BPF_TCP_SYN_SENT ? SYMPTOM_UNANSWERED : SYMPTOM_NONE);
	else if (has_ended(ctx->args[1]))
		sock_ended(ctx, sk, st);
	return 1;
}
