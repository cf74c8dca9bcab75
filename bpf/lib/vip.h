/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whether what was translated once would be again. */
#pragma once

#include "service.h"

/* Says whether what is sent to a VIP leads to the service still. */
static __noinline bool vip_leads_to(const struct addr *vip, __be16 port, __u8 proto, __u32 service)
{
	struct frontend_key key = { .addr = *vip, .port = port, .proto = proto };
	struct frontend fe = {};

	if (!addr_is_unspecified(vip) && !frontend_read(&key, &fe))
		return fe.service == service;
	if (!addr_is_loopback(vip) && !addr_is_unspecified(vip) && !is_node_addr(&key.addr))
		return false;
	return !frontend_nodeport(&key, &fe) && fe.service == service;
}
