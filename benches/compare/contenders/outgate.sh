# outgate with each feature that the table of features adds. FEATURES: the words of those that are on.
# shellcheck shell=bash disable=SC2034,SC2154
supports="plain tls tls-new tls-tickets tunnel bulk rate idle-clients idle-tunnels"
FEATURES=${FEATURES-limit signature record metrics audit}
has() { [[ " $FEATURES " = *" $1 "* ]]; }
version() { "$outgate" --version | cut -d' ' -f2; }
# outgate writes into no tunnel, so the route of a tunnel has no signer.
case $workload in tunnel | bulk | idle-tunnels) FEATURES=${FEATURES/signature/} ;; esac
if has signature; then measure_options+=(--signs); fi
if has metrics; then measure_options+=(--scrape 127.0.0.1:3127); fi
if has token; then measure_options+=(--field 'Proxy-Authorization: Bearer '"$token"); fi
start() {
	printf 0123456789abcdef0123456789abcdef >key
	chmod 600 key
	cat >outgate.toml <<-END
		[server]
		listen = ["127.0.0.1:3128"]
		allow_anonymous = $(has token && echo false || echo true)
		workers = ${WORKERS:-1}
		[admin]
		listen = [$(has metrics && echo '"127.0.0.1:3127"')]
		[egress.default]
		ranges = ["$source/32"]
		[[routes]]
		name = "all"
		hosts = ["*"]
		trust = "bench"
		plaintext = "allow"
		connect = "tunnel"
		response_max = "4 GiB"
		$(has signature && echo 'sign = ["platform"]')
		$(has limit && echo 'limits = ["all"]')
		$(has metrics && echo 'metrics = "own"')
		[trust.bench]
		roots = ["$authority/ca.pem"]
		[guard]
		allow = ["127.0.0.1/32"]
		ports = [9080, 9443, 9444, 9445, 9446, 9447]
		[resolver.hosts]
		"$target" = ["127.0.0.1"]
		[log]
		deliveries = "$(has record && echo file:deliveries.log || echo off)"
		$(has audit && printf '[audit]\nfile = "%s/audit.jsonl"' "$PWD")
		$(has token && printf '[clients.bench]\ntokens = ["%s"]' "$token_hash")
		$(has signature && printf '[signers.platform]\nscheme = "hmac"\nkeys = [{ id = "k1", secret = "file:key" }]\nheaders = ["Webhook-Signature: sha256={signature}"]')
		$(has limit && printf '[limits.all]\nrate = "1000000/s"\nburst = 1000000\nconcurrency = 10000\nper = ["host"]')
	END
	exec "$outgate" run --config outgate.toml
}
