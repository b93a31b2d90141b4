#!/bin/sh
# Announces the ranges while outgate is ready, and withdraws them otherwise. outgate-bird.service runs it. Two answers in a
# row decide, so that one slow answer moves no range. It repeats its command, because `birdc configure` disables the ranges
# again.
set -u
last=unknown
while :; do
	if curl --silent --fail --max-time 1 --output /dev/null "${READYZ:-http://127.0.0.1:4751/readyz}"; then
		now=enable
	else
		now=disable
	fi
	if [ "$now" = "$last" ]; then
		birdc "$now" '"egress*"' >/dev/null
	fi
	last=$now
	sleep 1
done
