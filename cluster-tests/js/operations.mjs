// Every operation of a Socket.IO server, seen by clients of the official library on three nodes: see
// `tests/all/operations_js.rs`.
import assert from "node:assert/strict";
import {
  BYTES, Client, NOTHING, acknowledged, call, clients, emit, enter, exit, fetch, findAll, heard, heardBy, ids, isBytes,
  isExact, known, nodeName, run, same, selected, tagged, talkers, until,
} from "./harness.mjs";

// How long a socket may take to acknowledge where one never does: the others do it on a busy machine, too.
const ACK_TIMEOUT_MS = 2_000;
const SETTLED_JOINS = 12;

const BOTH = ["polling", "websocket"];
// Their node, their transports, their rooms. What is in no room is for all.
const PEOPLE = {
  a1: [0, ["websocket"], ["lobby"]],
  a2: [0, ["polling"], ["lobby", "quiet"]],
  b1: [1, ["polling"], ["lobby", "quiet"]],
  b2: [1, BOTH, ["alone"]],
  c1: [2, BOTH, ["lobby"]],
  c2: [2, ["websocket"], ["quiet"]],
};
const SELECTIONS = [
  {},
  { to: ["lobby"] },
  { to: ["alone"] },
  { to: ["nobody"] },
  { to: ["lobby", "quiet"] },
  { to: ["lobby"], except: ["quiet"] },
  { to: ["lobby", "alone"], except: ["quiet", "nobody"] },
  { except: ["lobby"] },
  { flags: ["broadcast"] },
  { flags: ["broadcast"], to: ["lobby", "quiet"] },
  { flags: ["local"] },
  { flags: ["local"], to: ["lobby"] },
];

const client = (name) => clients.find((client) => client.name === name);
const connected = (client) => until(() => `${client.name} connects`, () => client.socket.connected);

// Has each node do something with each selection. The clients that are selected hear the event that this returns, if it
// does, and the others do not.
async function eachSelection(carryOut, selections = () => SELECTIONS) {
  for (const sender of talkers()) {
    const events = [];
    for (const selection of selections()) {
      const those = selected(sender, selection);
      const event = await carryOut(sender, selection, those);
      if (event) events.push([those, event]);
    }
    const isFor = (one) => ([those]) => those.includes(one);
    await heard(sender, (one) => events.filter(isFor(one)).map(([, event]) => event));
  }
}

// As `eachSelection`: each node with each socket alone.
async function eachSocket(carryOut) {
  await eachSelection(carryOut, () => clients.map(({ id }) => ({ socket: id })));
}

// They all acknowledge, but for who does not answer.
async function ask(sender, selection, those) {
  const tag = tagged(BYTES, selection);
  const { acks } = await call(sender, "ask", { tag, data: BYTES, ...selection });
  acknowledged(acks, those, tag);
  return `asked ${tag}`;
}

await run({
  async "connect by each transport"() {
    for (const [name, [node, transports]] of Object.entries(PEOPLE)) new Client(name, node, transports);
    for (const one of clients) {
      await connected(one);
      const transport = PEOPLE[one.name][1].at(-1);
      await until(() => `${one.name} talks by ${transport}`, () => one.transport === transport);
      same(one.log.splice(0), ["connect"], `what ${one.name} heard`);
    }
  },

  // Whoever knows of another node sends it everything: from the first message that a client hears of a node on, none is
  // missing, and none comes twice.
  async "emit while the cluster is formed"() {
    const said = new Map(talkers().map((sender) => [sender, []]));
    const sayAll = async () => {
      for (const [sender, events] of said) events.push(`said ${await emit(sender)}`);
    };
    const hasHeard = (client, events) => events.some((event) => client.log.includes(event));
    const hasHeardAll = (client) => [...said.values()].every((events) => hasHeard(client, events));
    for (const one of clients) await enter(one, ...PEOPLE[one.name][2]);
    await until(() => "each node reaches each client", async () => {
      await sayAll();
      return clients.every(hasHeardAll);
    });
    await sayAll();
    const lasts = [...said.values()].map((events) => events.at(-1));
    const hasLasts = (client) => lasts.every((event) => client.log.includes(event));
    await until(() => "each client hears the last", () => clients.every(hasLasts));
    for (const one of clients) {
      const log = one.log.splice(0);
      for (const [sender, events] of said) {
        const got = log.filter((event) => events.includes(event));
        const from = sender.node === one.node ? 0 : events.indexOf(got[0]);
        same(got, events.slice(from), `what ${one.name} heard of ${sender.name}`);
      }
      same(log.filter((event) => ![...said.values()].flat().includes(event)), [], `what else ${one.name} heard`);
    }
    await known();
  },

  async "fetch sockets"() {
    await eachSelection(async (sender, selection, those) => {
      const sockets = await fetch(sender, selection);
      same(sockets.map(([id]) => id).sort(), ids(those), `${JSON.stringify(selection)} from ${sender.name}`);
    });
    const servers = new Map();
    for (const [id, server, namespace] of await fetch(talkers()[0], {})) {
      const { node } = clients.find((client) => client.id === id);
      assert.equal(servers.get(node) ?? server, server, "sockets of one node have one server");
      assert.equal(namespace, "/ops");
      servers.set(node, server);
    }
    assert.equal(new Set(servers.values()).size, 3, "each node has a server of its own");
  },

  async "broadcast to selections"() {
    await eachSelection(async (sender, selection) => `said ${await emit(sender, selection)}`);
  },

  // What is volatile is not in order with the rest: it may come before and after.
  async "volatile"() {
    for (const sender of talkers()) {
      for (const selection of [{}, { to: ["lobby"] }]) {
        const [those, flags] = [selected(sender, selection), ["volatile"]];
        const event = `said ${await emit(sender, { ...selection, flags })}`;
        await until(() => "a volatile event comes", () => those.every((client) => client.log.includes(event)));
        await heardBy(sender, those, event);
      }
    }
  },

  async "emit to one remote socket"() {
    await eachSocket(async (sender, selection) => `said ${await emit(sender, selection)}`);
  },

  async "large and empty attachments"() {
    const large = Buffer.alloc(70_000, BYTES);
    for (const data of [large, NOTHING, Buffer.from([0])]) {
      for (const one of clients) {
        const reply = await call(one, "echo", { data });
        assert(isBytes(reply.data, data), `${one.name} gets its ${data.length} bytes back`);
        await heardBy(one, clients, `said ${await emit(one, {}, data)}`);
      }
    }
  },

  async "acknowledgements of selections"() {
    await eachSelection(ask);
  },

  async "acknowledgement of one remote socket"() {
    await eachSocket(ask);
  },

  async "one socket never answers"() {
    const [sender, silent] = [client("a1"), client("c2")];
    const request = { to: ["lobby", "quiet"], timeout_ms: ACK_TIMEOUT_MS };
    const those = selected(sender, request);
    silent.answers = false;
    const event = await ask(sender, request, those);
    silent.answers = true;
    await heardBy(sender, those, event);
  },

  async "join and leave by selections"() {
    for (const [number, selection] of SELECTIONS.entries()) {
      const sender = talkers()[number % 3];
      const [those, room] = [selected(sender, selection), `moved-${number}`];
      await call(sender, "join", { ...selection, rooms: [room] });
      those.forEach((one) => one.rooms.add(room));
      // In a flood namespace the join is in order with what is emitted; in an exact one it has to become known.
      if (!isExact()) await heardBy(sender, those, `said ${await emit(sender, { to: [room] })}`);
      await findAll({ to: [room] });
      for (const other of talkers()) await heardBy(other, those, `said ${await emit(other, { to: [room] })}`);
      await call(sender, "leave", { ...selection, rooms: [room] });
      those.forEach((one) => one.rooms.delete(room));
      await heardBy(sender, [], `said ${await emit(sender, { to: [room] })}`);
      await findAll({ to: [room] });
      const other = talkers()[(number + 1) % 3];
      await heardBy(other, [], `said ${await emit(other, { to: [room] })}`);
    }
  },

  async "join and leave of one remote socket"() {
    const [a, b, one] = [client("a1"), client("b1"), client("c1")];
    await call(a, "join", { socket: one.id, rooms: ["one", "two"] });
    const { value } = await call(a, "rooms", { socket: one.id });
    same(value.sort(), ["lobby", "one", "two"], "its rooms");
    one.rooms.add("one").add("two");
    await findAll({ to: ["one"] });
    await heardBy(b, [one], `said ${await emit(b, { to: ["one", "two"] })}`);
    await call(a, "leave", { socket: one.id, rooms: ["one", "two"] });
    one.rooms.delete("one");
    one.rooms.delete("two");
    await heardBy(a, [], `said ${await emit(a, { to: ["one", "two"] })}`);
    await findAll({ to: ["one", "two"] });
  },

  async "rooms"() {
    await eachSelection(async (sender, selection, those) => {
      const { value } = await call(sender, "rooms", selection);
      const rooms = new Set(those.flatMap((one) => [...one.rooms]));
      same(value.sort(), [...rooms].sort(), `rooms of ${JSON.stringify(selection)} from ${sender.name}`);
    });
    for (const one of clients) {
      const { value } = await call(client("b2"), "rooms", { socket: one.id });
      same(value.sort(), [...one.rooms].sort(), `rooms of ${one.name}`);
    }
  },

  async "counts"() {
    for (const sender of talkers()) {
      const { value } = await call(sender, "count", { rooms: ["lobby"] });
      same(value, { all: 6, room: 4, nodes: 3, complete: true }, `what ${sender.name} counts`);
    }
  },

  async "server-side emit"() {
    for (const sender of talkers()) {
      const others = talkers().filter((other) => other !== sender);
      const tag = tagged();
      const { value } = await call(sender, "server-side ask", { tag });
      const expected = others.map((other) => [nodeName(other), nodeName(sender), tag]);
      same({ ...value, answers: value.answers.sort() }, { answers: expected.sort(), others: 0 }, "what servers answer");

      const reply = await call(sender, "server-side emit", { tag, data: BYTES });
      assert.equal(reply.value, 2, "the other servers get it");
      await heardBy(sender, clients.filter((one) => one.node !== sender.node), `said ${tag}`);
    }
  },

  // Whoever has joined and is settled misses nothing, wherever it is emitted.
  async "settled join"() {
    for (let number = 0; number < SETTLED_JOINS; number++) {
      const one = clients[number % clients.length];
      for (const other of talkers().filter((other) => other.node !== one.node)) {
        const room = `settled-${number}-${other.name}`;
        await enter(one, room);
        await heardBy(other, [one], `said ${await emit(other, { to: [room] })}`);
        await exit(one, room);
      }
    }
  },

  async "room events"() {
    const [own, there, room] = [client("a2"), client("b1"), "events"];
    const events = async (talker) => (await call(talker, "room events", { rooms: [room] })).value;
    const changes = [];
    // Each node hears of each change in the cluster, and of no other.
    const changed = async (name) => {
      changes.push([name, room]);
      for (const talker of talkers()) {
        let cluster = [];
        const isTold = async () => (cluster = (await events(talker)).cluster).length >= changes.length;
        await until(() => `${talker.name} hears ${changes}, not only ${cluster}`, isTold);
        same(cluster, changes, `what ${talker.name} hears of rooms`);
      }
    };
    await enter(own, room);
    await changed("room-opened");
    await enter(client("a1"), room);
    await exit(own, room);
    await exit(client("a1"), room);
    await changed("room-closed");
    await call(client("c1"), "join", { socket: there.id, rooms: [room] });
    await changed("room-opened");
    await call(client("a1"), "leave", { socket: there.id, rooms: [room] });
    await changed("room-closed");

    const [first, last] = [["create-room", room, ""], ["delete-room", room, ""]];
    const member = (name, one) => [name, room, one.id];
    const expected = [
      [first, member("join-room", own), member("join-room", client("a1")), member("leave-room", own),
        member("leave-room", client("a1")), last],
      [first, member("join-room", there), member("leave-room", there), last],
      [],
    ];
    for (const talker of talkers()) {
      let here = [];
      const isTold = async () => (here = (await events(talker)).here).length >= expected[talker.node].length;
      await until(() => `${talker.name} hears of its rooms, not only ${here}`, isTold);
      same(here, expected[talker.node], `the room events of ${talker.name}`);
    }
  },

  async "disconnect a room"() {
    const those = [new Client("x1", 1, ["websocket"]), new Client("x2", 2, ["polling"]), new Client("x3", 2, BOTH)];
    for (const one of those) {
      await connected(one);
      await enter(one, "leaving");
    }
    const [sender, request] = [client("a1"), { to: ["leaving"] }];
    await known();
    await sentAway(sender, those, request);
    await emit(sender, request);
    await heardBy(sender, [], "");
    await known();
  },

  async "disconnect one remote socket"() {
    for (const [node, transports] of [[0, ["polling"]], [2, BOTH], [1, ["websocket"]]]) {
      const one = new Client("x4", node, transports);
      await connected(one);
      await known();
      await sentAway(client("b1"), [one], { socket: one.id });
      await known();
    }
  },

  async "reconnect to another node"() {
    const one = client("b2");
    clients.splice(clients.indexOf(one), 1);
    one.socket.disconnect();
    same(one.log.splice(0), ["disconnect io client disconnect"], "what it heard");
    await known();
    one.move(2);
    one.socket.connect();
    await connected(one);
    clients.push(one);
    await isNewIn(one, "alone");
  },

  async "reconnect after a broken connection"() {
    const [one, old] = [client("c2"), client("c2").id];
    one.move(0);
    one.socket.io.engine.transport.ws.terminate();
    await until(() => "it comes back", () => one.socket.connected && one.id !== old);
    same(one.log.shift(), "disconnect transport close", "what it heard");
    await isNewIn(one, "quiet");
  },
});

// It has connected again, is in no room any more, and enters one.
async function isNewIn(one, room) {
  same(one.log.splice(0), ["connect"], "what it heard");
  await known();
  for (const sender of talkers()) {
    const those = selected(sender, { to: [room] });
    assert(!those.includes(one));
    await heardBy(sender, those, `said ${await emit(sender, { to: [room] })}`);
  }
  await enter(one, room);
  for (const sender of talkers()) {
    const those = selected(sender, { to: [room] });
    await heardBy(sender, those, `said ${await emit(sender, { to: [room] })}`);
  }
}

// Clients get what was emitted to them before, are disconnected, and do not come back.
async function sentAway(sender, those, request) {
  const event = `said ${await emit(sender, request)}`;
  await call(sender, "disconnect", request);
  for (const one of those) {
    await until(() => `${one.name} is sent away: ${one.log}`, () => !one.socket.connected);
    same(one.log, ["connect", event, "disconnect io server disconnect"], `what ${one.name} heard`);
    clients.splice(clients.indexOf(one), 1);
  }
}
