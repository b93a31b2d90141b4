#!/bin/sh
# curl. OUTGATE_PROXY: the URL of the proxy with the client and its token, http://billing:TOKEN@HOST:4750.
# TARGET: the URL of the receiver. OUTGATE_CA: a file of authorities to trust in place of the system's.
# Prints the fields of the response, of a refused CONNECT too, and the status.
#
# Outgate-TLS: if TARGET is an http:// URL, outgate uses https to the receiver.
# --max-time: longer than outgate's own `timeouts.total`.
# --config -: the proxy comes from standard input, because every user of the host can read a command line, and the URL has
# the token.
exec curl --silent --show-error --max-time 130 --output /dev/null --dump-header - --write-out '%{http_code}\n' \
	--config - ${OUTGATE_CA:+--cacert "$OUTGATE_CA" --proxy-cacert "$OUTGATE_CA"} \
	--header 'Outgate-TLS: 1' --header 'Outgate-Tenant: acme' \
	--header 'Content-Type: application/json' --data '{"type":"ping"}' "$TARGET" <<END
proxy = "$OUTGATE_PROXY"
END
