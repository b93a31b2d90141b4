// HttpClient of .NET, which sends its credential after a 407. OUTGATE_PROXY: the URL of the proxy with the client and its
// token, http://billing:TOKEN@HOST:4750. TARGET: the URL of the receiver. An authority of outgate's own: on Linux, .NET
// reads the file that SSL_CERT_FILE names.

using System;
using System.Net;
using System.Net.Http;
using System.Text;
using System.Threading.Tasks;

public static class Program
{
    public static int Main()
    {
        return Send().GetAwaiter().GetResult();
    }

    private static async Task<int> Send()
    {
        var url = new Uri(Environment.GetEnvironmentVariable("OUTGATE_PROXY"));
        var user = url.UserInfo.Split(new[] { ':' }, 2);
        var handler = new HttpClientHandler
        {
            Proxy = new WebProxy(url.Host, url.Port) { Credentials = new NetworkCredential(user[0], user[1]) },
            AllowAutoRedirect = false,
        };
        using (var client = new HttpClient(handler))
        using (var request = new HttpRequestMessage(HttpMethod.Post, Environment.GetEnvironmentVariable("TARGET")))
        {
            client.Timeout = TimeSpan.FromSeconds(130); // longer than outgate's own `timeouts.total`
            request.Headers.Add("Outgate-TLS", "1"); // if TARGET is an http:// URL, outgate uses https to the receiver
            request.Headers.Add("Outgate-Tenant", "acme");
            request.Content = new StringContent("{\"type\":\"ping\"}", Encoding.UTF8, "application/json");
            try
            {
                using (var response = await client.SendAsync(request))
                {
                    Console.WriteLine((int)response.StatusCode);
                    foreach (var name in new[] { "Outgate-Error", "Outgate-Egress", "Outgate-Request-Id" })
                    {
                        if (response.Headers.TryGetValues(name, out var values))
                        {
                            Console.WriteLine($"{name}: {string.Join(", ", values)}");
                        }
                    }
                }
                return 0;
            }
            catch (HttpRequestException error) // a refused CONNECT: the message has its status
            {
                Console.Error.WriteLine($"not delivered: {(error.InnerException ?? error).Message}");
                return 1;
            }
        }
    }
}
