/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Backends that new connections avoid for a while, because one has just failed there:
 * docs/adr/0010-suspicion.md.
 */
#pragma once

#include "service.h"

#define NSEC_PER_MSEC 1000000ULL

/* Says whether new connections should avoid a backend now. */
static __always_inline bool is_suspect(__u32 id)
{
	struct suspect *s = bpf_map_lookup_elem(&suspects, &id);
	__u64 until;

	if (!s)
		return false;
	until = READ_ONCE(s->until);
	if (!until)
		return false;
	if (until > bpf_ktime_get_ns())
		return true;
	__sync_val_compare_and_swap(&s->until, until,
				    0); /* who comes next need not ask for the time */
	return false;
}

/* Tells the agent. */
static __always_inline void symptom_tell(__u32 id, __u32 gen, __u32 kind, __u64 now)
{
	struct symptom s = { .at = now, .backend = id, .gen = gen, .kind = kind };
	const __u32 zero = 0;
	__u64 *lost;

	if (!bpf_ringbuf_output(&symptoms, &s, sizeof(s), 0))
		return;
	lost = bpf_map_lookup_elem(&symptoms_lost, &zero);
	if (lost)
		__sync_fetch_and_add(lost, 1);
}

/*
 * Notes what became of a connection. From a refused or an unanswered one on, new
 * connections avoid its backend for as long as its service says. A time is not made
 * longer before it is over, so the agent is told of each once, however many fail.
 */
__noinline int suspect_note(__u32 id, __u32 gen, __u32 kind)
{
	struct backend *be = bpf_map_lookup_elem(&backends, &id);
	struct suspect *s = bpf_map_lookup_elem(&suspects, &id);
	__u64 now, old, *until;
	struct service *svc;
	__u32 service;

	if (!be || !s || be->gen != gen || be->state != BACKEND_ACTIVE)
		return 0;
	service = be->service;
	svc = bpf_map_lookup_elem(&services, &service);
	if (!svc || !svc->suspect)
		return 0;
	now = bpf_ktime_get_ns();
	until = kind == SYMPTOM_RESET ? &s->reset : &s->until;
	old = READ_ONCE(*until);
	if (old > now || READ_ONCE(s->calm) > now ||
	    __sync_val_compare_and_swap(until, old, now + svc->suspect * NSEC_PER_MSEC) != old)
		return 0;
	symptom_tell(id, gen, kind, now);
	return 0;
}
