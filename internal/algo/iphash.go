// SPDX-License-Identifier: Apache-2.0

package algo

// ipHash is hash with the source address as its only key: connections of one
// address, or of one prefix if the Service sets its length, go to one member.
// The key is made by HashSource; the table is that of hash.
var ipHash = Algorithm{Name: "ip-hash", Build: buildHash}
