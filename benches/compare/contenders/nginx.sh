# nginx with a listener for each target. It has no CONNECT.
# shellcheck shell=bash disable=SC2034,SC2154
supports="plain tls tls-new tls-tickets rate idle-clients"
program=nginx
measure_options+=(--listeners)
version() { nginx -v 2>&1 | sed 's:.*/::'; }
start() {
	local port scheme
	{
		cat <<-END
			daemon off;
			master_process off;
			pid nginx.pid;
			error_log error.log;
			worker_rlimit_nofile 16000;
			events { worker_connections 12000; multi_accept on; }
			http {
			access_log off;
			tcp_nodelay on;
			keepalive_requests 1000000000;
			keepalive_timeout 600s;
			client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host \$http_host;
			proxy_request_buffering off;
			proxy_bind $source;
			proxy_ssl_verify on;
			proxy_ssl_verify_depth 3;
			proxy_ssl_trusted_certificate $authority/ca.pem;
			proxy_ssl_name $target;
			proxy_ssl_server_name on;
			proxy_ssl_protocols TLSv1.2 TLSv1.3;
		END
		for port in 9080 9443 9444 9445 9446 9447; do
			scheme=https
			[ $port = 9080 ] && scheme=http
			echo "upstream u$port { server 127.0.0.1:$port; keepalive 128; keepalive_requests 1000000000; }"
			echo "server { listen 127.0.0.1:$((port - 6000)); location / { proxy_pass $scheme://u$port; } }"
		done
		echo "}"
	} >nginx.conf
	exec nginx -c "$PWD/nginx.conf" -p "$PWD"
}
