// Tables whose rows stay the same elements while their content changes: focus and selection stay where they are.
class Table {
  // A column: its name, whether it holds numbers, and what a cell of a row shows: text, an element, or [main, small].
  constructor(table, caption, columns) {
    Object.assign(this, { columns, rows: new Map() });
    table.setAttribute("role", "table");
    table.caption.textContent = caption;
    const heads = columns.map(({ name, number }) =>
      element("th", { scope: "col", role: "columnheader", className: number ? "number" : "" }, name));
    this.body = element("tbody", { role: "rowgroup" });
    table.append(element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...heads)), this.body);
  }

  // `rows` are [key, row, class name].
  show(rows) {
    const gone = new Set(this.rows.keys());
    rows.forEach(([key, row, className], place) => {
      gone.delete(key);
      let tr = this.rows.get(key);
      if (!tr) {
        tr = element("tr", { role: "row", dataset: { row: key } }, ...this.columns.map(column => this.cell(column)));
        this.rows.set(key, tr);
      }
      tr.className = className ?? "";
      this.columns.forEach((column, at) => this.fill(tr.cells[at], column.cell(row, tr.cells[at])));
      if (this.body.children[place] !== tr) this.body.insertBefore(tr, this.body.children[place] ?? null);
    });
    for (const key of gone) {
      this.rows.get(key).remove();
      this.rows.delete(key);
    }
  }

  cell({ name, number, head, wide }) {
    const className = `${number ? "number" : ""}${wide ? " wide" : ""}`;
    return head
      ? element("th", { scope: "row", role: "rowheader", className })
      : element("td", { role: "cell", className, dataset: { label: name } });
  }

  fill(cell, content) {
    const parts = Array.isArray(content) ? content : [content];
    const key = parts.map(part => part?.textContent ?? part ?? "").join("\n");
    if (cell.shown === key) return;
    cell.shown = key;
    const [main, small] = parts;
    cell.replaceChildren(main ?? "", ...(small ? [element("small", {}, small)] : []));
  }
}

const none = "\u2013";

// Red where it is more than nothing.
function trouble(cell, value, text = number(value)) {
  cell.classList.toggle("bad", value > 0);
  return text;
}

function memberTable(choose) {
  const said = get => row => row.said ? get(row.said) : none;
  return new Table($("members"), "What each node says of itself; state and address as this node sees them", [
    { name: "Node", head: true, cell: row => {
      const name = element("button", { type: "button", className: "name", onclick: () => choose(row.id) }, row.id);
      return [name, row.own ? "this node" : ""];
    } },
    { name: "State", cell: row => [stateOf(row.state), `for ${duration(row.since_ms)}`] },
    { name: "Incarnation", wide: true, cell: row => [row.incarnation, row.address] },
    { name: "Age", number: true, cell: row => row.said ? [duration(row.said.uptime_ms), `version ${row.said.version}`] : none },
    { name: "Clients", number: true, cell: said(it => number(it.clients)) },
    { name: "Rooms", number: true, cell: row =>
      row.said ? number(row.said.rooms) : row.link?.rooms ? [number(row.link.rooms), "advertised"] : none },
    { name: "Queued", number: true, cell: said(it => [bytes(it.queue_bytes), count(it.queue_frames, "frame")]) },
    { name: "Drops", number: true, cell: (row, cell) => row.said ? trouble(cell, row.said.drops) : none },
    { name: "Lost to / from", number: true, cell: (row, cell) => row.said
      ? trouble(cell, row.said.gaps_sent + row.said.gaps_received, `${number(row.said.gaps_sent)} / ${number(row.said.gaps_received)}`)
      : none },
    { name: "Heard", number: true, cell: row =>
      [row.said ? (row.own || row.said.age_ms < 3000 ? "now" : `${duration(row.said.age_ms)} ago`) : none, row.silent] },
  ]);
}

function drops(link) {
  const reasons = Object.entries(link.drops).filter(([, value]) => value > 0);
  return reasons.map(([reason, value]) => `${reason.replaceAll("_", " ")} ${number(value)}`).join(", ");
}

function linkTable() {
  const kept = get => (row, cell) => row.link ? get(row.link, cell) : none;
  return new Table($("links"), "Counts are this node's own; of links between other nodes only state and round trip are known here", [
    { name: "To", head: true, cell: row => row.id },
    { name: "State", cell: row => stateOf(row.state) },
    { name: "Round trip", number: true, cell: row => roundTrip(row.time) || none },
    { name: "Up for", number: true, cell: kept(link => link.uptime_ms === null ? none : duration(link.uptime_ms)) },
    { name: "Times linked", number: true, cell: kept(link => [number(link.links), link.stalls ? `${count(link.stalls, "stall")}` : ""]) },
    { name: "Rooms advertised", number: true, cell: kept(link => number(link.rooms)) },
    { name: "Queued", number: true, cell: kept(link => [bytes(link.queue_bytes), count(link.queue_frames, "frame")]) },
    { name: "Drops", number: true, cell: kept((link, cell) => {
      const sum = Object.values(link.drops).reduce((sum, value) => sum + value, 0);
      return [trouble(cell, sum), drops(link)];
    }) },
    { name: "Lost to / from", number: true, cell: kept((link, cell) =>
      trouble(cell, link.gaps_sent + link.gaps_received, `${number(link.gaps_sent)} / ${number(link.gaps_received)}`)) },
  ]);
}
