// Clients of the official Socket.IO library on the servers of `tests/all/operations_js/server.rs`, and the check that
// each of them has heard what it must, once, and nothing else.
import assert from "node:assert/strict";
import { createInterface } from "node:readline";
import { io } from "socket.io-client";
import * as msgpack from "socket.io-msgpack-parser";

// As long as the tests wait for anything.
const DEADLINE_MS = 40_000;
const PAUSE_MS = 5;

export const NOTHING = Buffer.alloc(0);
export const BYTES = Buffer.from(Array.from({ length: 256 }, (_, index) => index));

// All clients that should be connected.
export const clients = [];
// The data of each event, by its tag.
const sent = new Map();
let operation = "start";
let options;

export class Client {
  // What it heard and was not checked yet: `<event> <tag>`, and `connect` and `disconnect <reason>`.
  log = [];
  // What the test has made it join.
  rooms = new Set();
  // Whether it acknowledges.
  answers = true;

  constructor(name, node, transports) {
    Object.assign(this, { name, node });
    this.socket = io(options.urls[node], {
      transports,
      ...(options.parser === "msgpack" && { parser: msgpack }),
      forceNew: true,
      reconnectionDelay: 50,
      reconnectionDelayMax: 200,
    });
    this.socket.on("connect", () => this.log.push("connect"));
    this.socket.on("disconnect", (reason) => this.log.push(`disconnect ${reason}`));
    this.socket.onAny((event, ...args) => this.hear(event, args));
    clients.push(this);
  }

  get id() {
    return this.socket.id;
  }

  get transport() {
    return this.socket.io.engine.transport.name;
  }

  // Where it connects from now on.
  move(node) {
    this.node = node;
    this.socket.io.uri = options.urls[node];
    // The server forgets them.
    this.rooms.clear();
  }

  hear(event, args) {
    const acknowledge = typeof args.at(-1) === "function" ? args.pop() : undefined;
    const [tag, data, nested] = args;
    const isRight = args.length === 3 && isData(tag, data) && isData(tag, nested?.again);
    this.log.push(`${event} ${tag}${isRight ? "" : ", but not its data"}`);
    if (acknowledge && this.answers) acknowledge({ who: this.name, tag, data: answerOf(this) });
  }
}

// What a client acknowledges: no text, and not the same for all.
function answerOf(client) {
  return Buffer.concat([Buffer.from(client.name), BYTES]);
}

function isData(tag, data) {
  return sent.has(tag) && isBytes(data, sent.get(tag));
}

export function isBytes(data, expected) {
  if (data instanceof ArrayBuffer) data = new Uint8Array(data);
  return ArrayBuffer.isView(data) && Buffer.compare(data, expected) === 0;
}

export function nodeName(client) {
  return options.nodes[client.node];
}

export function isExact() {
  return options.exact;
}

// The first client of each node.
export function talkers() {
  return options.nodes.map((_, node) => clients.find((client) => client.node === node));
}

export async function until(what, condition) {
  const end = performance.now() + DEADLINE_MS;
  while (!(await condition())) {
    assert(performance.now() < end, `not within ${DEADLINE_MS} ms: ${what()}`);
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  }
}

// Has the node of a client do something.
export async function call(client, name, request = {}) {
  const reply = await client.socket.timeout(DEADLINE_MS).emitWithAck("op", { data: NOTHING, ...request, name });
  assert.equal(reply.error, "", `${name} ${JSON.stringify(request)} of ${client.name}`);
  return reply;
}

// A name for an event that has these bytes.
export function tagged(data = BYTES, selection = {}) {
  const tag = `${operation} ${sent.size} ${JSON.stringify(selection)}`;
  sent.set(tag, data);
  return tag;
}

// Has the node of a client emit to a selection, and returns the tag.
export async function emit(client, selection = {}, data = BYTES) {
  const tag = tagged(data, selection);
  await call(client, "emit", { tag, data, ...selection });
  return tag;
}

export async function enter(client, ...rooms) {
  await call(client, "enter", { rooms });
  rooms.forEach((room) => client.rooms.add(room));
}

export async function exit(client, ...rooms) {
  await call(client, "exit", { rooms });
  rooms.forEach((room) => client.rooms.delete(room));
}

// The clients that a selection stands for.
export function selected(sender, { socket, to = [], except = [], flags = [] } = {}) {
  return clients.filter(({ id, node, rooms }) => {
    if (socket) return id === socket;
    if (flags.includes("broadcast") && id === sender.id) return false;
    if (flags.includes("local") && node !== sender.node) return false;
    return (to.length === 0 || to.some((room) => rooms.has(room))) && !except.some((room) => rooms.has(room));
  });
}

// Each client has heard what it must since the last check, in this order, and nothing else. What a node sends to others
// stays in order: when something comes that the node of `sender` emits to all, everything has come that it did before.
export async function heard(sender, expected) {
  const last = `said ${await emit(sender, {}, NOTHING)}`;
  const late = () => clients.filter((client) => !client.log.includes(last)).map((client) => client.name);
  await until(() => `${late()} hear what ${sender.name} says to all`, () => late().length === 0);
  for (const client of clients) {
    const log = client.log.splice(0, client.log.indexOf(last) + 1);
    same(log.slice(0, -1), expected(client), `what ${client.name} heard after ${sender.name}`);
  }
}

// As `heard`: one event, by those who were selected.
export async function heardBy(sender, those, event) {
  await heard(sender, (client) => (those.includes(client) ? [event] : []));
}

// The ids of the sockets that the node of a client finds: all nodes have said theirs.
export async function fetch(client, selection) {
  const { value } = await call(client, "fetch", selection);
  assert(value.complete, `the nodes have all said their sockets to ${client.name}`);
  return value.sockets;
}

// Waits until each node knows all sockets and their rooms.
export async function known() {
  const rooms = new Set(clients.flatMap((client) => [...client.rooms]));
  await Promise.all([{}, ...[...rooms].map((room) => ({ to: [room] }))].map(findAll));
}

// Waits until each node finds those who are selected, and nobody else.
export async function findAll(selection) {
  await Promise.all(talkers().map(async (client) => {
    const expected = ids(selected(client, selection));
    let found;
    const what = () => `${client.name} finds ${JSON.stringify(selection)}: ${expected}, not ${found}`;
    await until(what, async () => {
      const { value } = await call(client, "fetch", selection);
      found = value.sockets.map(([id]) => id).sort();
      return String(found) === String(expected);
    });
  }));
}

// Each of `those` has acknowledged an event once, and nobody else has.
export function acknowledged(acks, those, tag) {
  same(acks.map((ack) => ack.sid).sort(), ids(those), "who acknowledged");
  for (const { sid, error, answer } of acks) {
    const client = those.find((client) => client.id === sid);
    const data = isBytes(answer.data, client.answers ? answerOf(client) : NOTHING);
    const expected = client.answers ? ["", client.name, tag, true] : ["timeout", "", "", true];
    same([error, answer.who, answer.tag, data], expected, `the acknowledgement of ${client.name}`);
  }
}

export function ids(those) {
  return those.map((client) => client.id).sort();
}

// As `deepEqual`, and the message says what it is about and shows both.
export function same(actual, expected, what) {
  assert.deepEqual({ [what]: actual }, { [what]: expected });
}

function say(line) {
  process.stdout.write(JSON.stringify(line) + "\n");
}

// Says that it is ready, waits for the servers, and carries out one operation after the other, until one fails.
export async function run(operations) {
  console.log("ready");
  const lines = createInterface({ input: process.stdin });
  options = JSON.parse((await lines[Symbol.asyncIterator]().next()).value);
  for (const [name, carryOut] of Object.entries(operations)) {
    operation = name;
    const start = performance.now();
    try {
      await carryOut();
    } catch (error) {
      say({ operation, fault: String(error.stack ?? error) });
      process.exit(0);
    }
    say({ operation, ms: Math.round(performance.now() - start) });
  }
  process.exit(0);
}
