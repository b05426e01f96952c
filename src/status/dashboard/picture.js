// The picture: nodes on a circle, in the order of their names, and the links between them.
const SVG = "http://www.w3.org/2000/svg";
// From so many nodes on, names stand along the radius and links of others are faint.
const MANY = 17;
// Up to so many, round trips stand at the links.
const FEW = 8;
// What a node said counts for links for so long.
const FRESH_MS = 5000;
const WORST = ["up", "syncing", "down"];

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const name in attributes) if (attributes[name] !== undefined) made.setAttribute(name, attributes[name]);
  made.append(...children);
  return made;
}

// What both ends say of each link: `at(i, j)` is [state, round trip] with the worse of the two states, or none.
function linksOf(view) {
  const said = view.nodes.map(node => {
    const links = new Map();
    if (node.said && !node.silent && node.said.age_ms < FRESH_MS && node.state !== "dead") {
      for (const [to, state, time] of node.said.links) {
        // A node keeps an earlier run of a peer for a moment: the better of the two is the link.
        const before = links.get(to);
        if (!before || WORST.indexOf(state) < WORST.indexOf(before[0])) links.set(to, [state, time]);
      }
    }
    return links;
  });
  const at = (i, j) => {
    const [here, there] = [said[i].get(j), said[j].get(i)];
    if (!here || !there) return here ?? there;
    const worse = WORST.indexOf(here[0]) >= WORST.indexOf(there[0]) ? here : there;
    return [worse[0], here[1] ?? there[1]];
  };
  return { at, from: i => said[i] };
}

// What all names begin with says nothing: of `chat-7d9f-x2x4z` the end does.
function shortNames(nodes, limit) {
  const ids = nodes.map(node => node.id);
  let prefix = ids.length > 1 ? ids[0] : "";
  for (const id of ids) while (!id.startsWith(prefix)) prefix = prefix.slice(0, -1);
  prefix = /^.*[-._]/.exec(prefix)?.[0] ?? "";
  if (prefix.length < 4) prefix = "";
  return ids.map(id => {
    const rest = id.slice(prefix.length);
    const cut = rest.length > limit;
    return (prefix || cut ? "\u2026" : "") + (cut ? rest.slice(1 - limit) : rest);
  });
}

function shape(state, x, y, r) {
  switch (state) {
    case "suspect": return svg("path", { class: "node suspect", d: `M${x} ${y - 1.25 * r}l${1.2 * r} ${2.2 * r}h${-2.4 * r}z` });
    case "leaving": return svg("path", { class: "node leaving", d: `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z` });
    case "dead": return svg("path", { class: "node dead", d: `M${x - r} ${y - r}l${2 * r} ${2 * r}m0 ${-2 * r}l${-2 * r} ${2 * r}` });
    default: return svg("circle", { class: "node live", cx: x, cy: y, r });
  }
}

// Two nodes lie beside each other; others begin at the top. A few of them fill the height, whatever their number.
function circle(count, width, height, rx, ry) {
  const start = count === 2 ? Math.PI : -Math.PI / 2;
  const angles = Array.from({ length: count }, (_, at) => start + 2 * Math.PI * at / count);
  const sines = angles.map(Math.sin);
  const [top, bottom] = count > 2 && count < MANY ? [Math.min(...sines), Math.max(...sines)] : [-1, 1];
  const middle = (top + bottom) / 2, stretch = 2 / (bottom - top);
  const size = count === 1 ? 0 : 1;
  return angles.map((angle, at) => ({
    angle, x: width / 2 + size * rx * Math.cos(angle), y: height / 2 + size * ry * (sines[at] - middle) * stretch,
  }));
}

class Picture {
  constructor(box, choose) {
    this.box = box;
    box.addEventListener("click", event => {
      const node = event.target.closest("[data-node]");
      if (node) choose(node.dataset.node);
    });
    new ResizeObserver(() => this.draw()).observe(box);
  }

  show(view, chosen) {
    Object.assign(this, { view, chosen });
    this.draw();
  }

  draw() {
    const { view, box } = this;
    const width = Math.round(box.clientWidth);
    if (!view || !width) return;
    const nodes = view.nodes;
    const many = nodes.length >= MANY;
    const narrow = width < 480;
    const height = Math.round(many ? Math.min(width, 700) : Math.min(Math.max(width * .62, 300), 460));
    const space = many ? (narrow ? 74 : 118) : 52;
    const side = many ? Math.min(width, height) / 2 - space : Math.min(width / 2 - (narrow ? 70 : 120), height);
    const names = shortNames(nodes, many ? (narrow ? 9 : 12) : narrow ? 12 : 20);
    const places = circle(nodes.length, width, height, side, many ? side : height / 2 - space);
    const chosen = Math.max(0, nodes.findIndex(node => node.id === this.chosen));
    const links = linksOf(view);
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": describe(view, links, chosen),
      class: many ? "many" : undefined });
    this.links(root, nodes, places, links, chosen, many);
    nodes.forEach((node, at) => root.append(this.node(node, places[at], names[at], at === chosen, { many, narrow, links, chosen, at, width })));
    box.replaceChildren(root);
  }

  links(root, nodes, places, links, chosen, many) {
    const paths = { up: "", syncing: "", down: "" }; // of others, each kind in one element
    const cuts = [], times = [], own = [];
    const line = (from, to) => `M${from.x.toFixed(1)} ${from.y.toFixed(1)}L${to.x.toFixed(1)} ${to.y.toFixed(1)}`;
    const middle = (from, to, part) => ({ x: from.x + (to.x - from.x) * part, y: from.y + (to.y - from.y) * part });
    for (let i = 0; i < nodes.length; i += 1) {
      for (let j = i + 1; j < nodes.length; j += 1) {
        const link = links.at(i, j);
        if (!link || !(link[0] in paths)) continue;
        const mine = i === chosen || j === chosen;
        const [from, to] = j === chosen ? [places[j], places[i]] : [places[i], places[j]];
        // That nobody has a link to the dead is no news: in a large picture it would hide the rest.
        const dead = nodes[i].state === "dead" || nodes[j].state === "dead";
        if (!mine && many && dead) continue;
        if (mine) own.push(svg("path", { class: `link ${link[0]}`, d: line(from, to), "data-link": `${nodes[i].id} ${nodes[j].id}` }));
        else paths[link[0]] += line(from, to);
        if (link[0] === "down") {
          const { x, y } = middle(from, to, .5);
          cuts.push(svg("path", { class: "cut", d: `M${x - 5} ${y - 5}l10 10m0 -10l-10 10` }));
        } else if (mine && nodes.length <= FEW && nodes.length > 1) {
          const { x, y } = middle(from, to, .5);
          // As the chosen node measures it.
          const time = roundTrip(links.from(chosen).get(i === chosen ? j : i)?.[1] ?? link[1]);
          const half = 4 + 3.4 * time.length;
          times.push(svg("rect", { class: "plate", x: x - half, y: y - 9, width: 2 * half, height: 18, rx: 4 }),
            svg("text", { class: "time", x, y: y + 4, "text-anchor": "middle" }, time));
        }
      }
    }
    for (const state in paths) if (paths[state]) root.append(svg("path", { class: `link other ${state}`, d: paths[state] }));
    root.append(...own, ...cuts, ...times);
  }

  node(node, place, name, isChosen, { many, narrow, links, chosen, at, width }) {
    const { x, y, angle } = place;
    const r = many ? 5 : 10;
    const group = svg("g", { "data-node": node.id, "data-state": node.state });
    if (isChosen) group.append(svg("circle", { class: "ring", cx: x, cy: y, r: r + (many ? 4 : 6) }));
    // More than the shape can be clicked.
    group.append(svg("circle", { cx: x, cy: y, r: many ? 9 : 22, fill: "transparent" }), shape(node.state, x, y, r));
    const label = svg("text", { class: `${isChosen ? "chosen" : ""}${many ? " small" : ""}` }, name);
    const link = at === chosen ? null : links.at(chosen, at);
    if (many) {
      const left = Math.cos(angle) < -1e-9;
      const turn = angle * 180 / Math.PI + (left ? 180 : 0);
      const time = link && link[0] !== "down" && !narrow ? roundTrip(links.from(chosen).get(at)?.[1] ?? link[1]) : "";
      label.append(time ? svg("tspan", { class: "sub", dx: 5, fill: "var(--soft)" }, time) : "");
      const out = left ? -13 : 13;
      label.setAttribute("transform", `translate(${x.toFixed(1)} ${y.toFixed(1)}) rotate(${turn.toFixed(2)})`);
      label.setAttribute("x", out);
      label.setAttribute("y", 4);
      label.setAttribute("text-anchor", left ? "end" : "start");
      group.append(label);
      return group;
    }
    const cos = Math.cos(angle), sin = Math.sin(angle);
    const side = Math.abs(cos) < .35 ? "middle" : cos < 0 ? "end" : "start";
    const tx = side === "middle" ? x : x + Math.sign(cos) * 22;
    const ty = side === "middle" ? (sin < 0 ? y - 38 : y + 32) : y - 2;
    const sub = [node.id === this.view.node ? "this node" : "",
      node.state !== "live" ? node.state : node.said ? count(node.said.clients, "client") : ""].filter(Boolean).join(", ");
    label.setAttribute("x", Math.min(Math.max(tx, 4), width - 4));
    label.setAttribute("y", ty);
    label.setAttribute("text-anchor", side);
    group.append(label, svg("text", { class: "sub", x: tx, y: ty + 15, "text-anchor": side }, sub));
    return group;
  }
}

// The picture in words.
function describe(view, links, chosen) {
  const by = (items, key) => items.reduce((sums, item) => sums.set(key(item), (sums.get(key(item)) ?? 0) + 1), new Map());
  const list = sums => [...sums].map(([name, sum]) => `${sum} ${name}`).join(", ");
  const own = view.nodes.map((_, at) => at === chosen ? null : links.at(chosen, at)?.[0] ?? "unknown").filter(Boolean);
  return `${count(view.nodes.length, "node")}: ${list(by(view.nodes, node => node.state))}. ` +
    `Links of ${view.nodes[chosen]?.id}: ${list(by(own, state => state)) || "none"}.`;
}
