# Net::HTTP of Ruby's standard library. OUTGATE_PROXY: the URL of the proxy with the client and its token,
# http://billing:TOKEN@HOST:4750. TARGET: the URL of the receiver. OUTGATE_CA: a file of authorities to trust in place of
# the system's.

require "net/http"
require "uri"

proxy = URI(ENV.fetch("OUTGATE_PROXY"))
target = URI(ENV.fetch("TARGET"))
http = Net::HTTP.new(target.host, target.port, proxy.host, proxy.port, proxy.user, proxy.password)
http.use_ssl = target.scheme == "https"
http.ca_file = ENV["OUTGATE_CA"] if ENV["OUTGATE_CA"]
http.read_timeout = 130 # longer than outgate's own `timeouts.total`
http.max_retries = 0 # a webhook may have arrived although its response did not

request = Net::HTTP::Post.new(target)
request["Outgate-TLS"] = "1" # if TARGET is an http:// URL, outgate uses https to the receiver
request["Outgate-Tenant"] = "acme"
request["Content-Type"] = "application/json"
request.body = '{"type":"ping"}'
begin
  response = http.start { http.request(request) }
rescue StandardError => error # a refused CONNECT: the message has its status and reason
  abort "not delivered: #{error.message}"
end
puts response.code
["Outgate-Error", "Outgate-Egress", "Outgate-Request-Id"].each do |name|
  puts "#{name}: #{response[name]}" if response[name]
end
