# HAProxy with a listener for each target: it does not choose the target from the request. Its tunnels are a relay of
# TCP, without CONNECT and without a name to resolve.
# shellcheck shell=bash disable=SC2034,SC2154
supports="plain tls tls-new tls-tickets tunnel bulk rate idle-clients idle-tunnels"
program=haproxy
measure_options+=(--listeners)
sign=
version() { haproxy -v | sed -n '1s/.*version \([^ ]*\).*/\1/p'; }
start() {
	{
		cat <<-END
			global
			    nbthread 1
			    maxconn 6000
			    ssl-server-verify required
			defaults
			    mode http
			    timeout connect 10s
			    timeout client 600s
			    timeout server 600s
			    timeout tunnel 600s
			    http-reuse always
			    option splice-auto
			listen tunnels
			    mode tcp
			    bind 127.0.0.1:2080
			    server target 127.0.0.1:9080 source $source
		END
		local port tls
		for port in 9080 9443 9444 9445 9446 9447; do
			tls="ssl verify required ca-file $authority/ca.pem sni str($target) verifyhost $target"
			[ $port = 9080 ] && tls=
			printf 'listen target%s\n    bind 127.0.0.1:%s\n%s' $port $((port - 6000)) "$sign"
			printf '    server target 127.0.0.1:%s source %s %s\n' $port "$source" "$tls"
		done
	} >haproxy.cfg
	exec haproxy -db -f haproxy.cfg
}
