// What a load balancer in front of two nodes does to the official client: one that gives each request to the next node,
// and one that keeps a client at its node by a cookie.
//
// Reads one line `{urls}`: where the nodes are. Prints a line `NAME {...}` for each balancer and transport, and ends.
import { createServer, request } from "node:http";
import { connect } from "node:net";
import { createInterface } from "node:readline";
import { io } from "socket.io-client";

// Refused connections that are enough to say that it does not work: the client tries for ever.
const ENOUGH = 3;
// As long as the tests wait for anything.
const PATIENCE_MS = 40_000;
const ROOM = "lobby";

// Listens, and passes each request on to one of the targets: to the next, unless it is sticky and has the cookie of one.
async function balancer(targets, sticky) {
  let next = 0;
  const choose = ({ headers }) => {
    const cookie = sticky && /(?:^|;\s*)target=(\d+)/.exec(headers.cookie ?? "");
    return cookie ? Number(cookie[1]) : next++ % targets.length;
  };
  const server = createServer((incoming, outgoing) => {
    const target = choose(incoming);
    const { hostname, port } = new URL(targets[target]);
    const { method, url: path, headers } = incoming;
    const onward = request({ hostname, port, method, path, headers, agent: false }, (answer) => {
      const cookie = sticky ? { "set-cookie": `target=${target}; Path=/` } : {};
      outgoing.writeHead(answer.statusCode, { ...answer.headers, ...cookie });
      answer.pipe(outgoing);
    });
    onward.on("error", () => outgoing.destroy());
    outgoing.on("close", () => onward.destroy());
    incoming.pipe(onward);
  });
  server.on("upgrade", (incoming, client, head) => {
    const { hostname, port } = new URL(targets[choose(incoming)]);
    const node = connect(port, hostname, () => {
      const lines = [`${incoming.method} ${incoming.url} HTTP/1.1`];
      const { rawHeaders: raw } = incoming;
      for (let at = 0; at < raw.length; at += 2) lines.push(`${raw[at]}: ${raw[at + 1]}`);
      node.write(lines.join("\r\n") + "\r\n\r\n");
      node.write(head);
      node.pipe(client).pipe(node);
    });
    const end = () => [client, node].forEach((socket) => socket.destroy());
    [client, node].forEach((socket) => socket.on("error", end).on("close", end));
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  return `http://127.0.0.1:${server.address().port}`;
}

function open(url, transport) {
  return io(url, {
    transports: [transport],
    withCredentials: true,
    forceNew: true,
    reconnectionDelay: 50,
    reconnectionDelayMax: 50,
  });
}

// Resolves with `value` once `look` returns one.
async function until(what, look) {
  for (const end = Date.now() + PATIENCE_MS; ; ) {
    const value = look();
    if (value) return value;
    if (Date.now() > end) throw new Error(`never: ${what}`);
    await new Promise((done) => setTimeout(done, 10));
  }
}

// What a client is told that is not let through.
async function refused(url, transport) {
  const socket = open(url, transport);
  const errors = [];
  let connected = 0;
  socket.on("connect", () => connected++);
  socket.on("connect_error", ({ description, context }) => {
    errors.push({ status: description, body: context?.responseText });
  });
  await until("enough errors", () => errors.length >= ENOUGH);
  socket.disconnect();
  return { connected, errors };
}

// Two clients in one room: where each is, and by which transport, after each has heard the other.
async function together(url, transport) {
  const names = ["first", "second"];
  const clients = [];
  // One after the other, so that the balancer gives them to different nodes.
  for (const name of names) {
    const socket = open(url, transport);
    const client = { name, socket, heard: new Map(), errors: 0 };
    socket.on("message", ({ text, node }) => client.heard.set(text, node));
    socket.on("connect_error", () => client.errors++);
    clients.push(client);
    await until(`${name} connects`, () => socket.connected);
    await socket.timeout(PATIENCE_MS).emitWithAck("join", ROOM);
  }
  const all = () => clients.every(({ heard }) => names.every((name) => heard.has(name)));
  await until("everyone hears everyone", () => {
    // Again until others know of the joins.
    for (const { socket, name } of clients) socket.emit("message", { room: ROOM, text: name });
    return all();
  });
  const transports = clients.map(({ socket }) => socket.io.engine.transport.name);
  const nodes = names.map((name) => clients[0].heard.get(name));
  const errors = clients.reduce((sum, client) => sum + client.errors, 0);
  for (const { socket } of clients) socket.disconnect();
  return { transports, nodes, errors };
}

function say(name, result) {
  process.stdout.write(`${name} ${JSON.stringify(result)}\n`);
}

const lines = createInterface({ input: process.stdin });
lines.once("line", async (line) => {
  const { urls } = JSON.parse(line);
  try {
    // One for each, so that no request of an earlier client takes a turn.
    say("next-polling", await refused(await balancer(urls, false), "polling"));
    say("next-websocket", await together(await balancer(urls, false), "websocket"));
    say("sticky-polling", await together(await balancer(urls, true), "polling"));
    say("sticky-websocket", await together(await balancer(urls, true), "websocket"));
    process.exit(0);
  } catch (error) {
    console.error(error);
    process.exit(1);
  }
});
// The test is over.
lines.on("close", () => process.exit(1));
