import java.net.Authenticator;
import java.net.InetSocketAddress;
import java.net.PasswordAuthentication;
import java.net.ProxySelector;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;

/**
 * HttpClient of the JDK. It sends its credential to a proxy after a 407, and over CONNECT only with
 * {@code -Djdk.http.auth.tunneling.disabledSchemes=""}: the JDK forbids Basic there unless the property says otherwise.
 *
 * <p>OUTGATE_PROXY: the URL of the proxy with the client and its token, http://billing:TOKEN@HOST:4750. TARGET: the URL of
 * the receiver. An authority of outgate's own belongs into a trust store: {@code -Djavax.net.ssl.trustStore=FILE}.
 */
public class SendHttpClient {
    public static void main(String[] args) throws Exception {
        URI proxy = URI.create(System.getenv("OUTGATE_PROXY"));
        String[] credential = proxy.getUserInfo().split(":", 2);
        HttpClient client = HttpClient.newBuilder()
                .version(HttpClient.Version.HTTP_1_1) // no `Upgrade: h2c` with each request
                .proxy(ProxySelector.of(new InetSocketAddress(proxy.getHost(), proxy.getPort())))
                .authenticator(new Authenticator() {
                    @Override
                    protected PasswordAuthentication getPasswordAuthentication() {
                        // The target must not get the token.
                        return getRequestorType() == RequestorType.PROXY
                                ? new PasswordAuthentication(credential[0], credential[1].toCharArray())
                                : null;
                    }
                })
                .build();
        HttpRequest request = HttpRequest.newBuilder(URI.create(System.getenv("TARGET")))
                .timeout(Duration.ofSeconds(130)) // longer than outgate's own `timeouts.total`
                .header("Outgate-TLS", "1") // if TARGET is an http:// URL, outgate uses https to the receiver
                .header("Outgate-Tenant", "acme")
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString("{\"type\":\"ping\"}"))
                .build();
        // A refused CONNECT: the message of the exception has its status.
        HttpResponse<Void> response = client.send(request, HttpResponse.BodyHandlers.discarding());
        System.out.println(response.statusCode());
        for (String name : new String[] {"Outgate-Error", "Outgate-Egress", "Outgate-Request-Id"}) {
            response.headers().firstValue(name).ifPresent(value -> System.out.println(name + ": " + value));
        }
    }
}
