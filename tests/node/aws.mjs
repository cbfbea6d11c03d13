// AWS as far as SNS' subscribers see it, at the address of its own behind a proxy.
//
// node aws.mjs HOST TLS_CERT TLS_KEY SIGNING_CERT
//
// Prints {"proxy": URL, "port": number}: the proxy leads to HOST, which listens at that port, and to nowhere else. HOST shows the
// certificate that SNS signs with, and confirms subscriptions. Then prints one line of JSON for each connection that the proxy
// is asked for, and for each request: {"connect": "host:port"}, {"get": path}.
import { readFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import net from "node:net";

const [host, cert, key, signing] = process.argv.slice(2);
const tell = (line) => console.log(JSON.stringify(line));
const listen = (server) => new Promise((done) => server.listen(0, "127.0.0.1", () => done(server.address().port)));

const aws = https.createServer({ cert: readFileSync(cert), key: readFileSync(key) }, (request, response) => {
  tell({ get: request.url });
  if (request.url === "/SimpleNotificationService-1.pem") response.end(readFileSync(signing));
  else if (request.url.startsWith("/?Action=ConfirmSubscription")) response.end("<ConfirmSubscriptionResponse/>");
  else response.writeHead(404).end();
});
const port = await listen(aws);

const proxy = http.createServer((_, response) => response.writeHead(405).end());
proxy.on("connect", (request, socket) => {
  tell({ connect: request.url });
  socket.on("error", () => socket.destroy());
  if (request.url !== `${host}:443`) return socket.end("HTTP/1.1 403 Forbidden\r\n\r\n");
  const onward = net.connect(port, "127.0.0.1", () => {
    socket.write("HTTP/1.1 200 Connection established\r\n\r\n");
    socket.pipe(onward).pipe(socket);
  });
  onward.on("error", () => socket.destroy());
});
tell({ proxy: `http://127.0.0.1:${await listen(proxy)}`, port });
