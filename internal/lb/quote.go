// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"strconv"
	"unicode/utf8"
)

// maxQuoted is how many bytes of a text Quote keeps: enough to recognize it.
const maxQuoted = 64

// ellipsis ends what was cut.
const ellipsis = "..."

// Shorten returns text, or its beginning and three dots: limit bytes at most, which
// must be 3 or more. It does not cut characters.
func Shorten(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	end := limit - len(ellipsis)
	for back := 0; back < utf8.UTFMax-1 && end > 0 && !utf8.RuneStart(text[end]); back++ {
		end--
	}
	return text[:end] + ellipsis
}

// Brief returns text as Quote does, without the quotes.
func Brief(text string) string { return Shorten(text, maxQuoted) }

// Quote returns text in quotes, for messages. Somebody else has written it: it may be
// as long as an API server allows, so only 64 bytes of it are told.
func Quote(text string) string { return strconv.Quote(Brief(text)) }
