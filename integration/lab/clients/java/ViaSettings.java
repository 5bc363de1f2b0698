import java.net.ProxySelector;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

/** A GET by java.net.http and one by URL, both over the proxy of the system properties: URL. */
class ViaSettings {
    public static void main(String[] args) throws Exception {
        var url = URI.create(args[0]);
        var client = HttpClient.newBuilder().proxy(ProxySelector.getDefault()).build();
        var answer = client.send(HttpRequest.newBuilder(url).build(), BodyHandlers.ofString());
        try (var again = url.toURL().openStream()) {
            again.readAllBytes();
        }
        System.out.println(answer.statusCode() + " " + answer.body());
    }
}
