// SPDX-License-Identifier: Apache-2.0

package node

import "testing"

func TestListFirst(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"both tables", "*filter\n:A - [0:0]\nCOMMIT\n*nat\n:B - [0:0]\n-A B -j ACCEPT\nCOMMIT\n",
			"*filter\n:A - [0:0]\nCOMMIT\n*nat\n-S\n:B - [0:0]\n-A B -j ACCEPT\nCOMMIT\n"},
		{"no table nat", "*filter\nCOMMIT\n", "*filter\nCOMMIT\n"},
	} {
		if got := string(listFirst([]byte(tc.text))); got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}
