// Clients of the official Socket.IO library in front of pods that come and go. Each joins one room whenever it is
// connected, and sends it numbered messages.
//
// Each line of standard input is `{op, ...}`, each line of standard output something that happened to a client:
//
// - `{client, is: "connected", sid}` and `{client, is: "disconnected", sid}`
// - `{client, is: "sent", sid, number}`: the server has said that it handed the message on
// - `{client, is: "got", sid, from, node, number}`: a message of the socket `from`, which was on `node`
// - `{is: "quiet"}`: nothing is sent any more, and nobody waits for an acknowledgement
import { createInterface } from "node:readline";
import { io } from "socket.io-client";

const ROOM = "all";
const EVERY_MS = 50;
// As long as the tests wait for anything.
const ANSWER_TIMEOUT_MS = 40_000;

let sending = true;
// Messages that were not answered yet.
let pending = 0;

function open({ client, url }) {
  const socket = io(url, {
    transports: ["websocket"],
    forceNew: true,
    reconnectionDelay: 100,
    reconnectionDelayMax: 500,
    timeout: 5_000,
  });
  let sid;
  let joined;
  let number = 0;
  // For the answer to the last message.
  let waits = false;
  socket.on("connect", () => {
    const now = socket.id;
    sid = now;
    say({ client, is: "connected", sid });
    socket.timeout(ANSWER_TIMEOUT_MS).emit("join", ROOM, (error, reply) => {
      if (!error && reply.ok) joined = now;
    });
  });
  socket.on("disconnect", () => say({ client, is: "disconnected", sid }));
  socket.on("message", ({ text, from, node }) => {
    say({ client, is: "got", sid, from, node, number: Number(text) });
  });
  setInterval(() => {
    // Not while it is away: the library would keep the message and send it from another socket. One after the other: the
    // server hands on what it has at the same time in any order.
    if (!sending || waits || !socket.connected || joined !== socket.id) return;
    const now = joined;
    const mine = ++number;
    pending += 1;
    waits = true;
    socket.timeout(ANSWER_TIMEOUT_MS).emit("message", { room: ROOM, text: String(mine) }, (error, reply) => {
      pending -= 1;
      waits = false;
      // Without an answer nobody knows whether the server has it.
      if (!error && reply.ok) say({ client, is: "sent", sid: now, number: mine });
    });
  }, EVERY_MS);
}

function quiet() {
  sending = false;
  const wait = setInterval(() => {
    if (pending > 0) return;
    clearInterval(wait);
    say({ is: "quiet" });
  }, 20);
}

function say(line) {
  process.stdout.write(JSON.stringify(line) + "\n");
}

const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const order = JSON.parse(line);
  ({ open, quiet })[order.op](order);
});
// The test is over.
lines.on("close", () => process.exit(0));
