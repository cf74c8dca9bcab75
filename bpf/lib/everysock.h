/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Programs that run for every socket with an assignment come in pairs. A kernel in
 * lockdown, as with Secure Boot, may refuse those that walk the elements of a map;
 * their twins, named *_file, walk the open files of all processes instead. They see a
 * socket once for each process that has it, and none that has no file: the kernel's own.
 */
#pragma once

#include "maps.h"

struct file;

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct socket {
	struct sock *sk;
};

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	void *map;
	struct sock *sk;
	void *value; /* struct sock_state */
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	void *task;
	__u32 fd;
	struct file *file;
};

#pragma clang attribute pop

/* The socket of an open file, or NULL. */
static __always_inline struct sock *sock_of_file(const struct bpf_iter__task_file *ctx)
{
	struct file *file = ctx->file;
	struct socket *s = file ? bpf_sock_from_file(file) : NULL;

	return s ? s->sk : NULL;
}

/* The assignment of a socket, or NULL. */
static __always_inline struct sock_state *state_of(struct sock *sk)
{
	return sk ? bpf_sk_storage_get(&sock_states, sk, 0, 0) : NULL;
}
