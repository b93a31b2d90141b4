#!/bin/sh
# Announces the ranges while outgate is ready, and withdraws them otherwise. outgate-bird.service runs it. The arguments are
# protocols of bird.conf. Of an argument PROTOCOL=RANGE, outgate must also be able to send from the whole range: this is not
# so while a fleet has it assigned to another host. This needs the file CURL_CONFIG, with the token of a viewer
# (`[admin.users]`):
#   header = "Authorization: Bearer TOKEN"
# Two answers in a row decide, so that one slow answer moves no range. It repeats its commands, because `birdc configure`
# disables the ranges again. While outgate is ready and does not answer about its ranges, such as to a
# wrong token, they stay as they are.
set -u
[ $# -gt 0 ] || { echo "name the protocols, such as egress4 or egress4=198.51.100.16/28" >&2; exit 64; }
admin=${ADMIN:-http://127.0.0.1:4751}
last=unknown
ask() {
	curl --config "${CURL_CONFIG:-/dev/null}" --silent --fail --max-time 1 "$admin$1"
}
while :; do
	ready=disable
	usable=
	if ask /readyz >/dev/null; then
		ready=enable
		case $* in
		*=*)
			answer=$(ask /v1/egress) || {
				echo "outgate is ready, and does not answer /v1/egress: is the token in CURL_CONFIG that of a viewer?" >&2
				last=unknown
				sleep 1
				continue
			}
			usable=$(echo "$answer" | tr '{' '\n' | sed -n 's/.*"usable_ranges":\[\([^]]*\)\].*/\1/p')
			;;
		esac
	fi
	now=
	for argument; do
		case $argument in
		*=*)
			case $usable in
			*"\"${argument#*=}\""*) now="$now enable" ;;
			*) now="$now disable" ;;
			esac
			;;
		*) now="$now $ready" ;;
		esac
		now="$now ${argument%%=*}"
	done
	if [ "$now" = "$last" ]; then
		echo "$now" | xargs -n 2 birdc >/dev/null
	fi
	last=$now
	sleep 1
done
