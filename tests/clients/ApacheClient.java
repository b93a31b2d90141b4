import com.google.gson.Gson;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.InputStreamReader;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.security.KeyStore;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import org.apache.http.Header;
import org.apache.http.HttpHost;
import org.apache.http.auth.AuthScope;
import org.apache.http.auth.UsernamePasswordCredentials;
import org.apache.http.client.methods.CloseableHttpResponse;
import org.apache.http.client.methods.RequestBuilder;
import org.apache.http.entity.ByteArrayEntity;
import org.apache.http.impl.client.BasicCredentialsProvider;
import org.apache.http.impl.client.CloseableHttpClient;
import org.apache.http.impl.client.HttpClientBuilder;
import org.apache.http.impl.client.HttpClients;
import org.apache.http.ssl.SSLContexts;
import org.apache.http.util.EntityUtils;

/**
 * Apache HttpClient 4.5. It sends its credentials only after a 407, and reads no answer before its request is written.
 * Arguments: the proxy's URL (empty: none), a CA file, the form. See exchange.py.
 */
public class ApacheClient {
    public static void main(String[] args) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (FileInputStream pem = new FileInputStream(args[1])) {
            int number = 0;
            for (Certificate ca : CertificateFactory.getInstance("X.509").generateCertificates(pem)) {
                store.setCertificateEntry("ca" + number++, ca);
            }
        }
        HttpClientBuilder builder = HttpClients.custom();
        builder.setSSLContext(SSLContexts.custom().loadTrustMaterial(store, null).build());
        if (!args[0].isEmpty()) {
            URI proxy = URI.create(args[0]);
            HttpHost host = new HttpHost(proxy.getHost(), proxy.getPort());
            builder.setProxy(host);
            if (proxy.getUserInfo() != null) {
                BasicCredentialsProvider credentials = new BasicCredentialsProvider();
                credentials.setCredentials(new AuthScope(host), new UsernamePasswordCredentials(proxy.getUserInfo()));
                builder.setDefaultCredentialsProvider(credentials);
            }
        }
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        try (CloseableHttpClient client = builder.build()) {
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                JsonObject answer = new JsonObject();
                try {
                    answer = send(client, JsonParser.parseString(line).getAsJsonObject());
                } catch (Exception fault) {
                    answer.addProperty("error", fault + " caused by " + fault.getCause());
                }
                System.out.println(new Gson().toJson(answer));
            }
        }
    }

    private static JsonObject send(CloseableHttpClient client, JsonObject one) throws Exception {
        RequestBuilder request = RequestBuilder.create(one.get("method").getAsString());
        request.setUri(one.get("url").getAsString());
        one.get("headers").getAsJsonObject().entrySet()
                .forEach(header -> request.addHeader(header.getKey(), header.getValue().getAsString()));
        if (!one.get("body").isJsonNull()) {
            request.setEntity(new ByteArrayEntity(one.get("body").getAsString().getBytes(StandardCharsets.UTF_8)));
        }
        try (CloseableHttpResponse got = client.execute(request.build())) {
            JsonObject answer = new JsonObject();
            JsonObject headers = new JsonObject();
            for (Header header : got.getAllHeaders()) {
                headers.addProperty(header.getName().toLowerCase(), header.getValue());
            }
            answer.addProperty("status", got.getStatusLine().getStatusCode());
            answer.add("headers", headers);
            boolean isEmpty = got.getEntity() == null;
            answer.addProperty("body", isEmpty ? "" : EntityUtils.toString(got.getEntity(), StandardCharsets.UTF_8));
            return answer;
        }
    }
}
