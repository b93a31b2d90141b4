import java.net.URI;
import org.apache.http.HttpHost;
import org.apache.http.auth.AuthScope;
import org.apache.http.auth.UsernamePasswordCredentials;
import org.apache.http.client.config.RequestConfig;
import org.apache.http.client.methods.CloseableHttpResponse;
import org.apache.http.client.methods.HttpPost;
import org.apache.http.entity.ContentType;
import org.apache.http.entity.StringEntity;
import org.apache.http.impl.client.BasicCredentialsProvider;
import org.apache.http.impl.client.CloseableHttpClient;
import org.apache.http.impl.client.HttpClients;

/**
 * Apache HttpClient 4.5, which sends its credential after a 407. OUTGATE_PROXY: the URL of the proxy with the client and
 * its token, http://billing:TOKEN@HOST:4750. TARGET: the URL of the receiver. An authority of outgate's own belongs into a
 * trust store: {@code -Djavax.net.ssl.trustStore=FILE}.
 */
public class SendApache {
    public static void main(String[] args) throws Exception {
        URI url = URI.create(System.getenv("OUTGATE_PROXY"));
        HttpHost proxy = new HttpHost(url.getHost(), url.getPort());
        BasicCredentialsProvider credentials = new BasicCredentialsProvider();
        credentials.setCredentials(new AuthScope(proxy), new UsernamePasswordCredentials(url.getUserInfo()));
        HttpPost request = new HttpPost(System.getenv("TARGET"));
        request.setHeader("Outgate-TLS", "1"); // if TARGET is an http:// URL, outgate uses https to the receiver
        request.setHeader("Outgate-Tenant", "acme");
        request.setEntity(new StringEntity("{\"type\":\"ping\"}", ContentType.APPLICATION_JSON));
        try (CloseableHttpClient client = HttpClients.custom()
                        .useSystemProperties() // javax.net.ssl.trustStore
                        .setProxy(proxy)
                        .setDefaultCredentialsProvider(credentials)
                        .setDefaultRequestConfig(RequestConfig.custom().setSocketTimeout(130_000).build())
                        .disableRedirectHandling()
                        .disableAutomaticRetries() // a webhook may have arrived although its response did not
                        .build();
                // A refused CONNECT: the response is that of outgate.
                CloseableHttpResponse response = client.execute(request)) {
            System.out.println(response.getStatusLine().getStatusCode());
            for (String name : new String[] {"Outgate-Error", "Outgate-Egress", "Outgate-Request-Id"}) {
                if (response.containsHeader(name)) {
                    System.out.println(name + ": " + response.getFirstHeader(name).getValue());
                }
            }
        }
    }
}
