# httpclient: one client for all requests. It writes the port into every absolute-form.

require "httpclient"
require_relative "exchange"

client = HTTPClient.new(proxy: PROXY.empty? ? nil : PROXY, force_basic_auth: true)
client.ssl_config.clear_cert_store
client.ssl_config.add_trust_ca(CA)

exchange do |method, url, headers, body|
  got = client.request(method, url, header: headers, body: body)
  [got.status, got.headers, got.body]
end
