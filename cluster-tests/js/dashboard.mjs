// The dashboard in a browser, on two of three nodes. One argument: JSON with `chromium` (the program), `first` and `second`
// (the addresses of the status of nodes a and b), and `screenshots` (a folder).
import assert from "node:assert/strict";
import { mkdir, readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { TIMEOUT_MS, ask, launch } from "./browser.mjs";

const options = JSON.parse(process.argv[2]);
const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const LARGE = { width: 1280, height: 1000 };
const PHONE = { width: 360, height: 760 };
// What no page may do: an error, something that its policy forbids, or a request to somewhere else.
const faults = [];
// While a node is away its page may fail to reach it.
let away = false;

async function open(browser, url, view) {
  const context = await browser.newContext(view);
  context.setDefaultTimeout(TIMEOUT_MS);
  const page = await context.newPage();
  page.on("pageerror", (error) => faults.push(`${url}: ${error}`));
  page.on("console", (message) => {
    if (message.type() === "error" && !away) faults.push(`${url}: ${message.text()}`);
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !request.url().startsWith("data:")) faults.push(`${url}: ${request.url()}`);
  });
  await page.goto(url);
  await fresh(page, "live");
  return page;
}

const fresh = (page, state) => page.locator(`[data-testid=freshness][data-state=${state}]`).waitFor();
const row = (page, table, id) => page.locator(`[data-testid=${table}] [data-row="${id}"]`);
const cell = (page, table, id, label) => row(page, table, id).locator(`[data-label="${label}"]`);
const shows = (page, table, id, label, text) => cell(page, table, id, label).filter({ hasText: text }).waitFor();
const happened = (page, text) => page.getByTestId("events").getByRole("listitem").filter({ hasText: text }).first().waitFor();
const drawn = (page, id, state) => page.locator(`[data-testid=picture] [data-node="${id}"][data-state=${state}]`).waitFor();
// A line that lies flat has no height: not "visible".
const link = (page, pair, state) => page.locator(`[data-testid=picture] .link.${state}[data-link="${pair}"]`).waitFor({ state: "attached" });

async function screenshot(page, name) {
  await page.screenshot({ path: `${options.screenshots}/dashboard-${name}.png`, fullPage: true });
}

async function tile(page, name, value) {
  await page.waitForFunction(([name, value]) => {
    const tiles = [...document.querySelectorAll("#tiles > div")];
    return tiles.find((tile) => tile.children[0].textContent === name)?.children[1].textContent === value;
  }, [name, value]);
}

async function overview(page) {
  assert.equal(await page.getByTestId("cluster").textContent(), "chat");
  assert.equal(await page.getByTestId("self").textContent(), "a");
  await tile(page, "Live nodes", "3 of 3");
  await tile(page, "Links up", "3 of 3");
  for (const id of ["a", "b", "c"]) {
    await shows(page, "members", id, "State", "live");
    await shows(page, "members", id, "Heard", "now");
    await shows(page, "members", id, "Clients", "0");
    await shows(page, "members", id, "Age", "version");
    await drawn(page, id, "live");
  }
  for (const id of ["b", "c"]) {
    await shows(page, "links", id, "State", "up");
    await shows(page, "links", id, "Round trip", "ms");
    await link(page, `a ${id}`, "up");
  }
  assert.match(await cell(page, "members", "b", "Incarnation").textContent(), /^\d{10,}/);
  await happened(page, "b joined");
  await happened(page, "link to c is up");
}

// Everything by the keyboard.
async function keyboard(page) {
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to the members");
  await page.keyboard.press("Enter");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "b");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Links of b" }).waitFor();
  await link(page, "b c", "up");
  await shows(page, "links", "c", "State", "up");
  // Its counts are not known here, only how the link is.
  assert.equal(await cell(page, "links", "c", "Drops").textContent(), "\u2013");
  // The focus outlives what is drawn every second.
  await page.waitForResponse(`${options.first}/cluster`);
  await page.waitForResponse(`${options.first}/cluster`);
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "b");
  await page.getByRole("combobox", { name: /^Links of/ }).selectOption("a");
  await page.getByRole("heading", { name: "Links of a" }).waitFor();
  await page.locator("[data-testid=picture] [data-node=c]").click();
  await page.getByRole("heading", { name: "Links of c" }).waitFor();
  await page.getByRole("button", { name: "a", exact: true }).click();
}

// The node whose page is open is killed, and the others see it.
async function kill(first, second) {
  const before = await cell(first, "members", "b", "Incarnation").textContent();
  away = true;
  await ask("kill the second node");
  await fresh(second, "stale");
  await second.getByText(/stale since \d\d:\d\d:\d\d/).waitFor();
  await second.getByTestId("events-state").getByText("trying again").waitFor();
  await happened(first, "link to b is down");
  await happened(first, "b is suspect");
  await shows(first, "members", "b", "State", "dead");
  await drawn(first, "b", "dead");
  await link(first, "a b", "down");
  await happened(first, "b is dead");
  await tile(first, "Live nodes", "2 of 3");
  await tile(first, "Links up", "1 of 1");
  await screenshot(first, "killed");
  await screenshot(second, "stale");
  await ask("start the second node");
  await fresh(second, "live");
  away = false;
  await shows(first, "members", "b", "State", "live");
  await shows(first, "members", "b", "Heard", "now");
  await happened(first, "b was restarted");
  assert.notEqual(await cell(first, "members", "b", "Incarnation").textContent(), before);
  await tile(first, "Links up", "3 of 3");
  // The stream of events has come back by itself, to another run.
  await happened(second, "a joined");
  await second.getByTestId("events-state").filter({ hasText: /^$/ }).waitFor({ state: "attached" });
}

async function freeze(page) {
  const pause = page.getByRole("button", { name: "Pause" });
  await pause.click();
  assert.equal(await pause.getAttribute("aria-pressed"), "true");
  const listed = await page.getByTestId("events").getByRole("listitem").count();
  await ask("freeze the third node");
  await shows(page, "members", "c", "Heard", "no answer");
  await shows(page, "members", "c", "State", "suspect");
  await drawn(page, "c", "suspect");
  await page.getByTestId("events-state").getByText(/paused, [1-9]\d* waiting/).waitFor();
  assert.equal(await page.getByTestId("events").getByRole("listitem").count(), listed);
  await screenshot(page, "frozen");
  await ask("wake the third node");
  await shows(page, "members", "c", "State", "live");
  await shows(page, "members", "c", "Heard", "now");
  await pause.click();
  await happened(page, "c is suspect");
  await happened(page, "c is live again");
}

// A cluster as large as none that a test can start in time, with everything that may be wrong.
function large(count, view) {
  const id = (at) => `chat-7d9f8b6c5-${(at * 7919 + 60466).toString(36).padStart(5, "x")}`;
  const ids = Array.from({ length: count }, (_, at) => id(at)).sort();
  const state = (at) => (at === 7 ? "dead" : at === 19 ? "suspect" : at === 31 ? "leaving" : "live");
  const nodes = ids.map((id, at) => {
    const dead = state(at) === "dead";
    const link = (to) => [to, state(to) === "dead" ? "down" : at + to === 52 ? "syncing" : (at === 12 && to === 40) ? "down" : "up",
      state(to) === "dead" ? null : 180 + ((at * to) % 50) * 23];
    const drops = at === 19 ? 1204 : 0;
    return {
      id, incarnation: String(1790000000000000 + at * 7_777_777), address: `10.1.${at % 7}.${at + 10}:7946`, state: state(at),
      since_ms: 3_600_000 * (at + 1),
      link: at === 0 ? null : { state: dead ? "down" : "up", round_trip_us: dead ? null : 200 + at * 11, uptime_ms: dead ? null : 86_400_000,
        links: 1 + (at % 3), stalls: 0, rooms: 4000 + at, queue_frames: at, queue_bytes: at * 4096, gaps_sent: dead ? 12 : 0, gaps_received: 0,
        drops: { queue_full: drops, too_large: 0, not_writable: 0, peer_gone: 0, waited_too_long: 0, displaced: 0, expired: 0 } },
      said: dead ? null : { age_ms: 300, version: "0.1.0", uptime_ms: 86_400_000 + at * 60_000, clients: 900 + 13 * at, rooms: 4000 + at,
        emitters: 0, queue_frames: 40, queue_bytes: 40_960, drops, gaps_sent: 0, gaps_received: 0,
        links: ids.map((_, to) => to).filter((to) => to !== at).map(link) },
      silent: dead ? "no answer: left" : null,
    };
  });
  return { ...view, cluster: "chat-prod", node: ids[0], nodes };
}

async function many(page) {
  const view = await (await page.request.get(`${options.first}/cluster`)).json();
  await page.route("**/cluster", (route) => route.fulfill({ json: large(50, view) }));
  await tile(page, "Live nodes", "47 of 50");
  await page.waitForFunction(() => document.querySelectorAll("[data-testid=picture] [data-node]").length === 50);
  assert.equal(await page.locator("[data-testid=members] tbody tr").count(), 50);
  assert.equal(await page.locator("[data-testid=links] tbody tr").count(), 49);
  // No two names lie on each other.
  const overlaps = await page.evaluate(() => {
    const middles = [...document.querySelectorAll("[data-testid=picture] text")].map((text) => {
      const { x, y, width, height } = text.getBoundingClientRect();
      return [x + width / 2, y + height / 2];
    });
    return middles.filter(([x, y], at) => middles.some(([u, v], other) => other > at && Math.hypot(x - u, y - v) < 9)).length;
  });
  assert.equal(overlaps, 0);
}

// What other nodes say is shown as it is and does nothing.
async function markup(page) {
  const view = await (await page.request.get(`${options.first}/cluster`)).json();
  const evil = "<img src=x onerror=document.title='evil'>";
  view.trouble = [evil];
  Object.assign(view.nodes[1], { silent: evil, address: evil, state: evil });
  view.nodes[2].id = evil;
  view.nodes[0].said.version = evil;
  await page.route("**/cluster", (route) => route.fulfill({ json: view }));
  await page.getByTestId("notices").getByText(evil).waitFor();
  await page.getByTestId("members").getByText(evil).first().waitFor();
  assert.equal(await page.locator("img").count(), 0);
  assert.doesNotMatch(await page.title(), /evil/);
}

async function fits(page) {
  const { scrollWidth, innerWidth } = await page.evaluate(() => ({ scrollWidth: document.documentElement.scrollWidth, innerWidth }));
  assert(scrollWidth <= innerWidth, `${scrollWidth} px on a screen of ${innerWidth} px`);
}

// axe needs what the policy of the page forbids: in a context of its own.
async function accessible(browser, url, view, routed) {
  const context = await browser.newContext({ ...view, bypassCSP: true });
  context.setDefaultTimeout(TIMEOUT_MS);
  const page = await context.newPage();
  await page.goto(url);
  await fresh(page, "live");
  await shows(page, "members", "b", "Heard", "now");
  if (routed) await many(page);
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }));
  const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).slice(0, 3).join("; ")}`);
  assert.deepEqual(found, [], JSON.stringify(view));
  await context.close();
}

await mkdir(options.screenshots, { recursive: true });
const browser = await launch(options.chromium);
try {
  const first = await open(browser, options.first, { viewport: LARGE, colorScheme: "light" });
  const second = await open(browser, options.second, { viewport: LARGE, colorScheme: "dark" });
  await overview(first);
  await keyboard(first);
  await screenshot(first, "light");
  await screenshot(second, "dark");
  console.log("shown");
  await kill(first, second);
  console.log("killed");
  await freeze(first);
  console.log("frozen");
  for (const colorScheme of ["light", "dark"]) {
    await accessible(browser, options.first, { viewport: LARGE, colorScheme });
    await accessible(browser, options.first, { viewport: PHONE, colorScheme }, true);
  }
  console.log("accessible");
  const phone = await open(browser, options.first, { viewport: PHONE, colorScheme: "dark", reducedMotion: "reduce" });
  await overview(phone);
  await fits(phone);
  await screenshot(phone, "phone");
  await many(phone);
  await fits(phone);
  await screenshot(phone, "50-phone");
  await many(second);
  await screenshot(second, "50-dark");
  await many(first);
  await fits(first);
  await screenshot(first, "50-light");
  await first.unrouteAll();
  await markup(first);
  assert.deepEqual(faults, []);
  console.log("done");
} finally {
  await browser.close();
}
process.exit(0);
