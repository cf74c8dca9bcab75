//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Programs that the agent runs over all sockets with an assignment, and over all
 * processes. Entry points only.
 */
#include "lib/stale.h"

char __license[] SEC("license") = "Dual BSD/GPL";

/* Writes a struct stale_sock for each socket that is connected to what is gone. */
SEC("iter/bpf_sk_storage_map")
int lb_stale(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	stale_sock(ctx->meta->seq, ctx->sk, ctx->value);
	return 0;
}

SEC("iter/task_file")
int lb_stale_file(struct bpf_iter__task_file *ctx)
{
	struct sock *sk = sock_of_file(ctx);

	stale_sock(ctx->meta->seq, sk, state_of(sk));
	return 0;
}

/* Writes the cookie of each UDP socket that is connected to a backend. */
SEC("iter/bpf_sk_storage_map")
int lb_assigned(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	assigned_sock(ctx->meta->seq, ctx->sk, ctx->value);
	return 0;
}

SEC("iter/task_file")
int lb_assigned_file(struct bpf_iter__task_file *ctx)
{
	struct sock *sk = sock_of_file(ctx);

	assigned_sock(ctx->meta->seq, sk, state_of(sk));
	return 0;
}

/* Writes a struct stale_sock for each TCP socket that is connected to a backend. */
SEC("iter/bpf_sk_storage_map")
int lb_connected(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	connected_sock(ctx->meta->seq, ctx->sk, ctx->value);
	return 0;
}

SEC("iter/task_file")
int lb_connected_file(struct bpf_iter__task_file *ctx)
{
	struct sock *sk = sock_of_file(ctx);

	connected_sock(ctx->meta->seq, sk, state_of(sk));
	return 0;
}

/* Writes a struct stale_process for each process. */
SEC("iter/task")
int lb_processes(struct bpf_iter__task *ctx)
{
	task_netns(ctx);
	return 0;
}

/* Keeps the types in the type information, from which the Go side is generated. */
const struct {
	struct stale_sock sock;
	struct stale_process process;
	enum stale_action action;
} *stale_types_for_go __attribute__((unused));
