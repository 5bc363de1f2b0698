import java.io.InputStream;
import java.net.InetSocketAddress;
import java.net.Proxy;
import java.net.Socket;

/** A GET over Proxy.Type.SOCKS, the name left to the proxy: PROXYHOST PROXYPORT HOST PORT. */
class ViaSocks {
    public static void main(String[] args) throws Exception {
        var at = new InetSocketAddress(args[0], Integer.parseInt(args[1]));
        try (var socket = new Socket(new Proxy(Proxy.Type.SOCKS, at))) {
            socket.connect(InetSocketAddress.createUnresolved(args[2], Integer.parseInt(args[3])), 20_000);
            socket.setSoTimeout(20_000);
            var ask = "GET / HTTP/1.0\r\nHost: " + args[2] + "\r\n\r\n";
            socket.getOutputStream().write(ask.getBytes());
            InputStream answer = socket.getInputStream();
            System.out.println(new String(answer.readAllBytes()));
        }
    }
}
