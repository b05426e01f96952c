// Asks for the cluster once a second while somebody looks, and listens to events.
const POLL_MS = 1000;
// At first the others have not been heard yet.
const FIRST_POLL_MS = 250;
const FIRST_POLLS = 5;
// A node that answers later than this does not answer.
const PATIENCE_MS = 4000;
const RETRY_MS = 5000;
const KEPT_EVENTS = 200;

const base = location.pathname.replace(/\/?$/, "/");
let view = null, chosen = null, polls = 0, polling = null, lastGood = null, before = null;

function choose(id) {
  chosen = id;
  show();
}

const picture = new Picture($("picture"), choose);
const members = memberTable(choose);
const linkRows = linkTable();
$("whose").onchange = () => choose($("whose").value);

function freshness(state, text) {
  $("freshness").dataset.state = state;
  document.body.classList.toggle("stale", state === "stale");
  write($("freshness"), text);
}

async function poll() {
  clearTimeout(polling);
  if (document.hidden) return;
  try {
    const answer = await fetch(`${base}cluster`, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!answer.ok) throw new Error(await answer.text());
    view = await answer.json();
    polls += 1;
    lastGood = Date.now();
    freshness("live", "live");
    show();
  } catch {
    freshness("stale", lastGood ? `stale since ${clock(lastGood)}: the node does not answer` : "the node does not answer");
  }
  clearTimeout(polling);
  polling = setTimeout(poll, polls < FIRST_POLLS ? FIRST_POLL_MS : POLL_MS);
}

function show() {
  if (!view) return;
  const nodes = view.nodes;
  if (!nodes.some(node => node.id === chosen)) chosen = view.node;
  write($("cluster"), view.cluster);
  write($("self"), view.node);
  write($("version"), `\u2013 version ${view.version}, ${view.draining ? "leaving" : view.ready ? "ready for clients" : "not ready"}`);
  document.title = `${view.cluster} as ${view.node} sees it \u2013 roomcast`;
  notices();
  const links = linksOf(view);
  tiles(links);
  whose();
  picture.show(view, chosen);
  members.show(nodes.map(node => [node.id, { ...node, own: node.id === view.node }, node.id === chosen ? "chosen" : ""]));
  write($("links-of"), chosen);
  const at = nodes.findIndex(node => node.id === chosen);
  const rows = nodes.flatMap((node, to) => {
    if (to === at) return [];
    const link = links.from(at).get(to) ?? links.at(at, to);
    const own = chosen === view.node ? node.link : null;
    if (!link && !own) return [];
    return [[node.id, { id: node.id, state: own?.state ?? link[0], time: own?.round_trip_us ?? link?.[1], link: own }]];
  });
  linkRows.show(rows);
}

function notices() {
  const list = [...view.trouble];
  if (view.draining) list.push(`${view.node} is leaving the cluster`);
  if (list.join("\n") === notices.shown) return;
  notices.shown = list.join("\n");
  $("notices").replaceChildren(...list.map(text => element("p", { className: "notice" }, text)));
}

function whose() {
  const select = $("whose");
  const ids = view.nodes.map(node => node.id);
  if (ids.join("\n") !== whose.shown) {
    whose.shown = ids.join("\n");
    select.replaceChildren(...ids.map(id => element("option", { value: id }, id === view.node ? `${id} (this node)` : id)));
  }
  if (select.value !== chosen) select.value = chosen;
}

function tiles(links) {
  const nodes = view.nodes;
  const there = nodes.map((node, at) => [node, at]).filter(([node]) => node.state === "live" || node.state === "suspect");
  const states = { up: 0, syncing: 0, down: 0, unknown: 0 };
  there.forEach(([, i], place) => there.slice(place + 1).forEach(([, j]) => { states[links.at(i, j)?.[0] ?? "unknown"] += 1; }));
  const pairs = there.length * (there.length - 1) / 2;
  const live = nodes.filter(node => node.state === "live").length;
  const other = ["suspect", "leaving", "dead"].map(state => [state, nodes.filter(node => node.state === state).length]);
  const silent = there.filter(([node]) => !node.said).length;
  const sum = get => there.reduce((sum, [node]) => sum + (node.said ? get(node.said) : 0), 0);
  const without = silent ? `without ${count(silent, "node")}` : "";
  const words = list => list.filter(([, n]) => n).map(([name, n]) => `${n} ${name}`).join(", ");
  const drops = sum(said => said.drops), lost = sum(said => said.gaps_sent + said.gaps_received);
  const shown = [
    ["Live nodes", `${live} of ${nodes.length}`, words(other), live < nodes.length],
    ["Links up", `${states.up} of ${pairs}`, words(Object.entries(states).slice(1)), states.up < pairs],
    ["Clients", number(sum(said => said.clients)), without || "on all nodes"],
    ["Rooms", number(sum(said => said.rooms)), without || "sum over nodes"],
    ["In queues", bytes(sum(said => said.queue_bytes)), count(sum(said => said.queue_frames), "frame")],
    ["Dropped", number(drops), "frames, since start", drops > 0],
    ["Lost in gaps", number(lost), "frames, since start", lost > 0],
    ["Messages out / in", rate(), "a second, this node"],
  ];
  const list = $("tiles");
  if (!list.children.length) {
    list.append(...shown.map(() => element("div", {}, element("dt"), element("dd"), element("dd", { className: "note" }))));
  }
  shown.forEach(([name, value, note, bad], at) => {
    const tile = list.children[at];
    tile.className = bad ? "bad" : "";
    [name, value, note].forEach((text, part) => write(tile.children[part], text));
  });
}

// Messages a second, handed in here and from others.
function rate() {
  const now = performance.now();
  if (!before || now - before.at >= POLL_MS || before.node !== view.node) {
    const seconds = before ? (now - before.at) / 1000 : 0;
    const per = (value, last) => seconds ? Math.max(0, Math.round((value - last) / seconds)) : 0;
    const text = before ? `${number(per(view.emits, before.emits))} / ${number(per(view.delivered, before.delivered))}` : "0 / 0";
    before = { at: now, node: view.node, emits: view.emits, delivered: view.delivered, text };
  }
  return before.text;
}

// Events: newest first. While paused they wait.
let source = null, lastId = null, paused = false;
const waiting = [];

function listen() {
  source?.close();
  source = new EventSource(`${base}events${lastId ? `?after=${encodeURIComponent(lastId)}` : ""}`);
  let opened = null;
  source.onopen = () => {
    opened = Date.now();
    eventsState("");
    // What was before is not read out.
    setTimeout(() => { if (!paused) $("log").ariaLive = "polite"; }, 1500);
  };
  source.onerror = () => {
    eventsState("no connection: trying again");
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, RETRY_MS);
  };
  source.addEventListener("happened", ({ data, lastEventId }) => {
    lastId = lastEventId;
    happened(JSON.parse(data), opened !== null && Date.now() - opened > 1500);
  });
  source.addEventListener("missed", ({ data, lastEventId }) => {
    lastId = lastEventId;
    happened({ unix_ms: Date.now(), kind: "missed", frames: JSON.parse(data).missed }, true);
  });
  source.addEventListener("stopped", () => {
    happened({ unix_ms: Date.now(), kind: `${view?.node ?? "this node"} has stopped` }, true);
    poll();
  });
}

function eventsState(text) {
  write($("events-state"), text || (paused ? `paused, ${waiting.length} waiting` : ""));
}

function happened(event, fresh) {
  if (paused) {
    waiting.push(event);
    if (waiting.length > KEPT_EVENTS) waiting.shift();
    return eventsState("");
  }
  const [grade, text, why] = sentence(event);
  const time = element("time", { dateTime: new Date(event.unix_ms).toISOString() }, clock(event.unix_ms));
  const more = why ? [element("span", { className: "why" }, `: ${why}`)] : [];
  const list = $("events");
  list.prepend(element("li", { className: `${grade}${fresh ? " fresh" : ""}`, dataset: { kind: event.kind } }, time, text, ...more));
  while (list.children.length > KEPT_EVENTS) list.lastChild.remove();
}

$("pause").onclick = () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", paused);
  $("log").ariaLive = paused ? "off" : "polite";
  if (!paused) for (const event of waiting.splice(0)) happened(event, false);
  eventsState("");
};

document.addEventListener("visibilitychange", poll);
poll();
listen();
