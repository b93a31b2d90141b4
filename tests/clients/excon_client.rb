# excon: one persistent connection for each origin. It writes the port into every absolute-form.

require "excon"
require "uri"
require_relative "exchange"

connections = Hash.new do |known, origin|
  more = PROXY.empty? ? {} : { proxy: PROXY }
  known[origin] = Excon.new(origin, persistent: true, ssl_ca_file: CA, **more)
end

exchange do |method, url, headers, body|
  uri = URI(url)
  connection = connections["#{uri.scheme}://#{uri.host}:#{uri.port}"]
  got = connection.request(method: method, path: uri.path, headers: headers, body: body)
  [got.status, got.headers, got.body]
end
