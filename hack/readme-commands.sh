#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Checks the commands that the documentation shows, in ```sh blocks and as `make ...`
# or `go run ...` in the text: every make target, every script and package path, and
# every verb of lbproxy must exist.
# usage: hack/readme-commands.sh [FILE...]
#
# Right above each ```sh block stands who runs it, or why nobody does:
#   <!-- run by: TestName -->    a test of this repository, which must exist
#   <!-- not run: WHY -->        reported
# A file of which one test runs everything says so once, anywhere above the first block:
#   <!-- all run by: TestName -->
# A block in another language has no commands.
set -euo pipefail
cd "$(dirname "$0")/.."

files=("$@")
[[ ${#files[@]} -gt 0 ]] || files=(README.md CONTRIBUTING.md docs/*.md docs/adr/*.md)
lbproxy=bin/lbproxy
span_re=$'\x60(make|go run) [^\x60]+\x60' # code within a sentence

status=0
bad() {
	echo "$where: $1" >&2
	status=1
}

checked=0
check() { # WORD... of one command
	while [[ ${1:-} == sudo || ${1:-} == *=* || ${1:-} == '$' ]]; do shift; done
	[[ $# -gt 0 ]] || return 0
	checked=$((checked + 1))
	case $1 in
	make)
		local word
		for word in "${@:2}"; do
			[[ $word == *=* || $word == -* ]] && continue
			grep -qE "^$word:" Makefile || bad "no make target $word"
		done
		;;
	lbproxy | ./bin/lbproxy | bin/lbproxy)
		[[ -x $lbproxy ]] || { bad "$lbproxy is not built: run make build first" && return; }
		[[ ${2:-} == "" || $2 == -* ]] ||
			"./$lbproxy" "$2" --help >/dev/null 2>&1 </dev/null || bad "lbproxy has no verb $2"
		;;
	go)
		local word
		for word in "${@:3}"; do
			[[ $word == ./* ]] || continue
			[[ -e ${word%%/...} ]] || bad "no such path: $word"
		done
		;;
	./* | hack/*)
		[[ -x $1 ]] || bad "no such program: $1"
		;;
	kubectl)
		local i
		for ((i = 2; i < $#; i++)); do
			[[ ${!i} == -f ]] || continue
			local j=$((i + 1))
			[[ ${!j} == http* || -e ${!j} ]] || bad "no such file: ${!j}"
		done
		;;
	esac
}

# marked checks the line above a block.
marked() { # LINE
	local test
	case ${all:-$1} in
	'<!-- run by: '* | '<!-- all run by: '*)
		test=${all:-$1}
		test=${test#*by: }
		test=${test%% *}
		grep -rqE "^func $test\(" --include='*_test.go' . || bad "no test $test, which is said to run this block"
		;;
	'<!-- not run: '*) echo "$where: ${1#<!-- }" | sed 's/ -->$//' ;;
	*) bad "a block of commands, and nothing above it says who runs it, or why nobody does" ;;
	esac
}

for file in "${files[@]}"; do
	number=0 inside="" above="" all=""
	while IFS= read -r line; do
		number=$((number + 1))
		where=$file:$number
		case $line in
		'<!-- all run by: '*) all=$line ;;
		'```sh' | '```bash' | '```shell' | '```console')
			inside=commands
			marked "$above"
			;;
		'```'*) if [[ -n $inside ]]; then inside=""; else inside=other; fi ;;
		*)
			if [[ -z $inside ]]; then
				while IFS= read -r span; do
					read -ra words <<<"$span"
					check "${words[@]}"
				done < <(grep -oE "$span_re" <<<"$line" | tr -d $'\x60')
			elif [[ $inside == other && $line =~ ^(\$|sudo|kubectl|helm|make)\  ]]; then
				bad "a command in a block that is not sh: nobody would run it"
			elif [[ $inside == commands && $line != '#'* ]]; then
				line=${line%%#*}
				line=${line%%|*}
				read -ra words <<<"$line"
				check "${words[@]}"
			fi
			;;
		esac
		above=$line
	done <"$file"
done

echo "readme-commands: $checked commands checked"
if ((checked == 0)); then
	echo "readme-commands: found no command in ${files[*]}" >&2
	exit 1
fi
exit "$status"
