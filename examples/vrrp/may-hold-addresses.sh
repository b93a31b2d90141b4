#!/bin/sh
# Exits 0 if outgate of this host may hold the addresses: it runs, and it does not drain. The status of /readyz alone does
# not tell: the host that waits has no source address, so it is not ready until it holds them.
answer=$(curl --silent --max-time 1 "${READYZ:-http://127.0.0.1:4751/readyz}") || exit 1
case $answer in
*draining*) exit 1 ;;
esac
