import java.io.InputStream;
import java.net.InetSocketAddress;
import java.net.Proxy;
import java.net.Socket;

/** A GET over Proxy.Type.SOCKS, the name left to the proxy, or resolved here: PROXYHOST PROXYPORT HOST PORT [here]. */
class ViaSocks {
    public static void main(String[] args) throws Exception {
        var at = new InetSocketAddress(args[0], Integer.parseInt(args[1]));
        try (var socket = new Socket(new Proxy(Proxy.Type.SOCKS, at))) {
            int port = Integer.parseInt(args[3]);
            var to = args.length > 4 ? new InetSocketAddress(args[2], port)
                    : InetSocketAddress.createUnresolved(args[2], port);
            if (to.isUnresolved() && args.length > 4) throw new java.net.UnknownHostException(args[2]);
            socket.connect(to, 20_000);
            socket.setSoTimeout(20_000);
            var ask = "GET / HTTP/1.0\r\nHost: " + args[2] + "\r\n\r\n";
            socket.getOutputStream().write(ask.getBytes());
            InputStream answer = socket.getInputStream();
            System.out.println(new String(answer.readAllBytes()));
        }
    }
}
