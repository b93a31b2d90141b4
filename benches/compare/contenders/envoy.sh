# Envoy with a dynamic forward proxy: the scheme of the absolute URL chooses TLS.
# shellcheck shell=bash disable=SC2034,SC2154
supports="plain tls tls-new tls-tickets tunnel bulk rate idle-clients idle-tunnels"
program=$(command -v envoy || echo "$root"/target/compare/envoy/lib/python3*/site-packages/envoy/_bin/envoy)
version() { "$program" --version | sed -n 's:.*version\: [^/]*/\([^/]*\)/.*:\1:p'; }
type=type.googleapis.com/envoy.extensions
cluster() {
	cat <<-END
		  - name: $1
		    lb_policy: CLUSTER_PROVIDED
		    connect_timeout: 10s
		    upstream_bind_config: { source_address: { address: $source, port_value: 0 } }
		    circuit_breakers: { thresholds: [ { max_connections: 20000, max_pending_requests: 20000, max_requests: 20000 } ] }
		    cluster_type:
		      name: envoy.clusters.dynamic_forward_proxy
		      typed_config:
		        "@type": $type.clusters.dynamic_forward_proxy.v3.ClusterConfig
		        dns_cache_config: { name: dns, dns_lookup_family: V4_ONLY }
	END
}
start() {
	{
		cat <<-END
			static_resources:
			  listeners:
			  - name: forward
			    address: { socket_address: { address: 127.0.0.1, port_value: 3128 } }
			    filter_chains:
			    - filters:
			      - name: envoy.filters.network.http_connection_manager
			        typed_config:
			          "@type": $type.filters.network.http_connection_manager.v3.HttpConnectionManager
			          stat_prefix: f
			          generate_request_id: false
			          server_header_transformation: PASS_THROUGH
			          stream_idle_timeout: 0s
			          common_http_protocol_options: { idle_timeout: 3600s }
			          http_protocol_options: { allow_absolute_url: true }
			          upgrade_configs: [ { upgrade_type: CONNECT } ]
			          route_config:
			            virtual_hosts:
			            - name: v
			              domains: [ "*" ]
			              routes:
			              - match: { connect_matcher: {} }
			                route: { cluster: plain, timeout: 0s, upgrade_configs: [ { upgrade_type: CONNECT, connect_config: {} } ] }
			              - match: { prefix: "/", headers: [ { name: ":scheme", string_match: { exact: https } } ] }
			                route: { cluster: tls, timeout: 60s }
			              - match: { prefix: "/" }
			                route: { cluster: plain, timeout: 60s }
			          http_filters:
			          - name: envoy.filters.http.dynamic_forward_proxy
			            typed_config:
			              "@type": $type.filters.http.dynamic_forward_proxy.v3.FilterConfig
			              dns_cache_config: { name: dns, dns_lookup_family: V4_ONLY }
			          - name: envoy.filters.http.router
			            typed_config:
			              "@type": $type.filters.http.router.v3.Router
			              suppress_envoy_headers: true
			              dynamic_stats: false
			  clusters:
		END
		cluster plain
		cluster tls
		cat <<-END
			    typed_extension_protocol_options:
			      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
			        "@type": $type.upstreams.http.v3.HttpProtocolOptions
			        upstream_http_protocol_options: { auto_sni: true, auto_san_validation: true }
			        explicit_http_config: { http_protocol_options: {} }
			    transport_socket:
			      name: envoy.transport_sockets.tls
			      typed_config:
			        "@type": $type.transport_sockets.tls.v3.UpstreamTlsContext
			        common_tls_context:
			          tls_params: { tls_maximum_protocol_version: TLSv1_3 }
			          validation_context: { trusted_ca: { filename: $authority/ca.pem } }
		END
	} >envoy.yaml
	exec "$program" -c envoy.yaml --concurrency 1 --disable-hot-restart -l warning
}
