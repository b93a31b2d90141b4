# Squid with OpenSSL, without a cache and without a log. An absolute https URL makes it use TLS.
# shellcheck shell=bash disable=SC2034,SC2154
supports="plain tls tls-new tls-tickets tunnel bulk rate idle-clients idle-tunnels"
program=squid
version() { squid -v | sed -n '1s/.*Version //p'; }
start() {
	cat >squid.conf <<-END
		http_port 127.0.0.1:3128
		http_access allow localhost
		http_access deny all
		cache deny all
		cache_mem 8 MB
		access_log none
		cache_log $PWD/cache.log
		cache_store_log none
		pid_filename none
		coredump_dir $PWD
		visible_hostname bench
		tcp_outgoing_address $source
		tls_outgoing_options cafile=$authority/ca.pem default-ca=off
		server_pconn_for_nonretriable allow all
		via off
		forwarded_for delete
		max_filedescriptors 16000
		shutdown_lifetime 0 seconds
	END
	exec squid -N -f squid.conf
}
