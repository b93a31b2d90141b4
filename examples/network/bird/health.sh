#!/bin/sh
# Announces the ranges while outgate is ready, and withdraws them otherwise. Run it as a service, as a member of the
# group bird. Two answers in a row decide, so that one slow answer moves no range.
set -u
ready=unknown
count=0
while :; do
	if curl --silent --fail --max-time 1 --output /dev/null "${READYZ:-http://127.0.0.1:4751/readyz}"; then
		now=enable
	else
		now=disable
	fi
	if [ "$now" = "$ready" ]; then
		count=0
	else
		count=$((count + 1))
	fi
	if [ "$count" -ge 2 ]; then
		if birdc "$now" '"egress*"' >/dev/null; then
			ready=$now
			count=0
		fi
	fi
	sleep 1
done
