import java.net.InetSocketAddress;
import java.net.ProxySelector;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

/** A GET by java.net.http: PROXYHOST PROXYPORT URL. */
class ViaHttp {
    public static void main(String[] args) throws Exception {
        var proxy = new InetSocketAddress(args[0], Integer.parseInt(args[1]));
        var client = HttpClient.newBuilder().proxy(ProxySelector.of(proxy)).build();
        var answer = client.send(HttpRequest.newBuilder(URI.create(args[2])).build(), BodyHandlers.ofString());
        System.out.println(answer.statusCode() + " " + answer.body());
    }
}
