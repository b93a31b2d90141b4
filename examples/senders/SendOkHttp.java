import java.net.InetSocketAddress;
import java.net.Proxy;
import java.net.URI;
import java.util.concurrent.TimeUnit;
import okhttp3.Credentials;
import okhttp3.MediaType;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.RequestBody;
import okhttp3.Response;

/**
 * OkHttp 3 and 4. OUTGATE_PROXY: the URL of the proxy with the client and its token, http://billing:TOKEN@HOST:4750.
 * TARGET: the URL of the receiver. An authority of outgate's own belongs into a trust store:
 * {@code -Djavax.net.ssl.trustStore=FILE}.
 */
public class SendOkHttp {
    public static void main(String[] args) throws Exception {
        URI proxy = URI.create(System.getenv("OUTGATE_PROXY"));
        String[] user = proxy.getUserInfo().split(":", 2);
        String credential = Credentials.basic(user[0], user[1]);
        OkHttpClient client = new OkHttpClient.Builder()
                .proxy(new Proxy(Proxy.Type.HTTP, new InetSocketAddress(proxy.getHost(), proxy.getPort())))
                .proxyAuthenticator((route, response) -> {
                    if (response.request().header("Proxy-Authorization") != null) {
                        return null; // outgate has refused the credential
                    }
                    return response.request().newBuilder().header("Proxy-Authorization", credential).build();
                })
                .followRedirects(false)
                .retryOnConnectionFailure(false) // a webhook may have arrived although its response did not
                .readTimeout(130, TimeUnit.SECONDS) // longer than outgate's own `timeouts.total`
                .build();
        Request request = new Request.Builder()
                .url(System.getenv("TARGET"))
                .header("Outgate-TLS", "1") // if TARGET is an http:// URL, outgate uses https to the receiver
                .header("Outgate-Tenant", "acme")
                .post(RequestBody.create(MediaType.parse("application/json"), "{\"type\":\"ping\"}"))
                .build();
        // A refused CONNECT: the message of the exception has its status.
        try (Response response = client.newCall(request).execute()) {
            System.out.println(response.code());
            for (String name : new String[] {"Outgate-Error", "Outgate-Egress", "Outgate-Request-Id"}) {
                if (response.header(name) != null) {
                    System.out.println(name + ": " + response.header(name));
                }
            }
        }
        // The thread of an HTTP/2 connection would keep this program alive for minutes.
        client.connectionPool().evictAll();
    }
}
