import java.io.*;
import java.net.*;

/** The first line of a server that speaks first: HOST PORT. */
public class Direct {
    public static void main(String[] args) throws Exception {
        try (var socket = new Socket(args[0], Integer.parseInt(args[1]))) {
            System.out.println(new BufferedReader(new InputStreamReader(socket.getInputStream())).readLine());
        }
    }
}
