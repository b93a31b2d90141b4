# What every Ruby client program does around its client; see exchange.py for the arguments and lines.

require "json"

PROXY, CA, FORM = ARGV

# The block takes method, URL, headers and body, and gives status, headers and body.
def exchange
  $stdin.each_line do |line|
    request = JSON.parse(line)
    begin
      status, headers, body = yield request["method"], request["url"], request["headers"], request["body"]
      fields = headers.to_h.to_h { |name, value| [name.downcase, Array(value).join(", ")] }
      answer = { status: status, headers: fields, body: body }
    rescue StandardError => fault # whatever the client raises is what its user sees
      answer = { error: "#{fault.class}: #{fault.message}" }
    end
    puts JSON.generate(answer)
    $stdout.flush
  end
end
