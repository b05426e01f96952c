// Clients of the official Socket.IO library, told what to do by a test.
//
// Each line of standard input is a call `{call, op, client, ...}`, each line of standard output an answer
// `{call, result}` or `{call, error}`, or something that happened to a client: `{client, is, ...}`. Bytes are written
// as `{bytes: "<hexadecimal>"}`.
import { createInterface } from "node:readline";
import { io } from "socket.io-client";
import * as msgpack from "socket.io-msgpack-parser";

// As long as the tests wait for anything.
const ANSWER_TIMEOUT_MS = 40_000;

const sockets = new Map();
// What each client acknowledges events with; true where it was told nothing, and nothing where that is null.
const acknowledgements = new Map();

// How each operation is carried out; what it returns is the answer.
const operations = {
  // Resolves at once: the connection is reported when it stands, and again each time it comes back.
  open({ client, url, transport, parser }) {
    const socket = io(url, {
      transports: [transport],
      ...(parser === "msgpack" && { parser: msgpack }),
      forceNew: true,
      reconnectionDelay: 100,
      reconnectionDelayMax: 500,
    });
    sockets.set(client, socket);
    socket.on("connect", () => {
      say({ client, is: "connected", sid: socket.id, transport: socket.io.engine.transport.name });
    });
    socket.on("disconnect", (reason) => say({ client, is: "disconnected", reason }));
    socket.onAny((event, ...args) => {
      const ack = typeof args.at(-1) === "function" ? args.pop() : () => {};
      say({ client, is: "event", event, args: plain(args) });
      const value = acknowledgements.has(client) ? acknowledgements.get(client) : true;
      if (value !== null) ack(value);
    });
  },
  // Resolves with what the server acknowledges.
  emit({ client, event, data }) {
    return socketOf(client).timeout(ANSWER_TIMEOUT_MS).emitWithAck(event, real(data));
  },
  // Without asking for an acknowledgement.
  send({ client, event, data }) {
    socketOf(client).emit(event, real(data));
  },
  // What the client acknowledges events with from now on.
  acknowledge({ client, value }) {
    acknowledgements.set(client, value);
  },
  disconnect({ client }) {
    socketOf(client).disconnect();
  },
  // The connection breaks without a goodbye, and the client does not come back.
  vanish({ client }) {
    const socket = socketOf(client);
    socket.io.reconnection(false);
    const { ws } = socket.io.engine.transport;
    if (!ws) throw new Error("only a WebSocket breaks; a long poll just ends");
    ws.terminate();
  },
};

function socketOf(client) {
  const socket = sockets.get(client);
  if (!socket) throw new Error(`no client ${client}`);
  return socket;
}

function say(line) {
  process.stdout.write(JSON.stringify(line) + "\n");
}

// Bytes as JSON.
function plain(value) {
  if (value instanceof ArrayBuffer) value = Buffer.from(value);
  if (ArrayBuffer.isView(value)) {
    return { bytes: Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString("hex") };
  }
  return map(value, plain);
}

// JSON with its bytes.
function real(value) {
  return typeof value?.bytes === "string" ? Buffer.from(value.bytes, "hex") : map(value, real);
}

function map(value, change) {
  if (Array.isArray(value)) return value.map(change);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, change(inner)]));
}

async function carryOut({ call, op, ...rest }) {
  try {
    say({ call, result: plain(await operations[op](rest)) ?? null });
  } catch (error) {
    say({ call, error: String(error) });
  }
}

const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => carryOut(JSON.parse(line)));
// The test is over.
lines.on("close", () => process.exit(0));
