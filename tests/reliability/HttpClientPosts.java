// Posts a body again and again with the JDK's own client, as it comes: it offers HTTP/2 (h2c) on every connection.
// Arguments: URL, file of the body, number. Every other body is of unknown length (chunked). Prints each answer's
// status and body, a line each.
import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;

public class HttpClientPosts {
    public static void main(String[] arguments) throws Exception {
        byte[] body = Files.readAllBytes(Path.of(arguments[1]));
        int number = Integer.parseInt(arguments[2]);
        for (int post = 0; post < number; post++) {
            // A client of its own for some, so that there are many first requests of a connection.
            HttpClient client = HttpClient.newHttpClient();
            for (int again = 0; again < 2; again++) {
                var publisher = post % 2 == 0
                    ? BodyPublishers.ofByteArray(body)
                    : BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body));
                var request = HttpRequest.newBuilder(URI.create(arguments[0])).POST(publisher).build();
                var response = client.send(request, BodyHandlers.ofString());
                System.out.println(response.statusCode() + " " + response.body());
            }
        }
    }
}
