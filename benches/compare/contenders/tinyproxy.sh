# tinyproxy: a thread for each connection, no keep-alive on either side, no TLS of its own.
# shellcheck shell=bash disable=SC2034,SC2154
supports="plain tunnel bulk rate"
program=tinyproxy
measure_options+=(--fresh)
version() { tinyproxy -v | cut -d' ' -f2; }
start() {
	cat >tinyproxy.conf <<-END
		Port 3128
		Listen 127.0.0.1
		Bind $source
		Timeout 600
		MaxClients 8000
		Allow 127.0.0.0/8
		DisableViaHeader Yes
		LogFile "$PWD/tinyproxy.log"
		LogLevel Critical
	END
	exec tinyproxy -d -c tinyproxy.conf
}
