/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Clients that keep their backend: docs/adr/0007-affinity.md. */
#pragma once

#include "choose.h"

/*
 * Finds the backend that a client keeps, if that takes connections in the pool that
 * this caller uses. Returns 0 and fills out, or -ENOENT. If the backend is suspect, it
 * returns 1: this connection passes by, and the client keeps what it has.
 */
__noinline int affinity_find(__u32 service, __u32 scope, const struct addr *client,
			     struct choice *out)
{
	struct service *svc = bpf_map_lookup_elem(&services, &service);
	struct affinity_key key = { .service = service };
	const struct slot *head;
	struct affinity *a;
	struct backend *be;
	__s64 age;
	__u32 id;

	if (!svc || !client || !out || scope >= SCOPES)
		return -ENOENT;
	key.client = *client;
	a = bpf_map_lookup_elem(&affinities, &key);
	if (!a)
		return -ENOENT;
	/* Another CPU may renew it after the clock was read here: then it is not old. */
	age = bpf_ktime_get_ns() - READ_ONCE(a->last);
	if (age > (__s64)(svc->affinity * NSEC_PER_SEC))
		return -ENOENT;
	id = a->backend;
	be = bpf_map_lookup_elem(&backends, &id);
	head = slot_at((__u32)READ_ONCE(svc->pool[scope]));
	if (!be || !head || be->gen != a->gen || be->service != service ||
	    !(be->pools & 1 << scope))
		return -ENOENT;
	out->addr = be->addr;
	out->port = be->port;
	out->signal = head->how >> HOW_SIGNAL_SHIFT & HOW_FIELD;
	out->backend = id;
	out->gen = a->gen;
	if (!svc->suspect || !is_suspect(id))
		return 0;
	out->flags |= CHOICE_PASSING;
	return 1;
}

/*
 * Makes a client keep what was chosen, from now on. Of connections that begin at once
 * one decides: the others get its backend in c. What an entry says that nobody can use
 * any more is replaced by who finds it so first.
 */
__noinline int affinity_keep(__u32 service, __u32 scope, const struct addr *client,
			     struct choice *c)
{
	struct affinity_key key = { .service = service };
	struct affinity new = { .last = bpf_ktime_get_ns() };
	__u64 old = 0, *word;
	struct affinity *a;
	__u32 lost;

	if (!client || !c || c->flags & CHOICE_PASSING)
		return 0;
	lost = c->backend;
	key.client = *client;
	new.backend = lost;
	new.gen = c->gen;
	a = bpf_map_lookup_elem(&affinities, &key);
	word = (__u64 *)a; /* the backend and its generation */
	if (word)
		old = READ_ONCE(*word);
	if (affinity_find(service, scope, client, c) < 0) {
		if (!word &&
		    (int)bpf_map_update_elem(&affinities, &key, &new, BPF_NOEXIST) != -EEXIST)
			return 0;
		if (word && __sync_val_compare_and_swap(word, old, *(__u64 *)&new) == old) {
			WRITE_ONCE(a->last, new.last);
			return 0;
		}
		if (affinity_find(service, scope, client, c) < 0)
			return 0; /* and it is gone again: this connection stays where it is */
	} else if (a) {
		WRITE_ONCE(a->last, new.last);
	}
	if (c->backend != lost)
		pick_undo(lost);
	return 0;
}
