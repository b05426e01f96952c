// The chat page in two browser windows, on two nodes. One argument: JSON with `chromium` (the program), `first` and
// `second` (the addresses of the pages), and `screenshots` (a folder).
import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { TIMEOUT_MS, ask, launch } from "./browser.mjs";

const PROBE_PAUSE_MS = 100;

const options = JSON.parse(process.argv[2]);
// What no page may do: an error, or a request to somewhere else.
const faults = [];

async function open(browser, url, view) {
  const context = await browser.newContext(view);
  context.setDefaultTimeout(TIMEOUT_MS);
  const page = await context.newPage();
  page.on("pageerror", (error) => faults.push(`${url}: ${error}`));
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !request.url().startsWith("data:")) faults.push(`${url}: ${request.url()}`);
  });
  await page.goto(url);
  await state(page, "connected");
  return page;
}

const state = (page, name) => page.locator(`[data-testid=state][data-state=${name}]`).waitFor();
const messages = (page) => page.getByTestId("message");
const withText = (page, text) => messages(page).filter({ hasText: text });
const arrives = (page, text) => withText(page, text).first().waitFor();

async function join(page, room) {
  await page.getByLabel("Room to join").fill(room);
  await page.getByRole("button", { name: "Join", exact: true }).click();
  await page.getByRole("button", { name: room, exact: true }).and(page.locator("[aria-current=true]")).waitFor();
}

// By the Enter key: the page is usable without a mouse.
async function say(page, text) {
  await page.getByLabel("Message", { exact: true }).fill(text);
  await page.getByLabel("Message", { exact: true }).press("Enter");
  await page.waitForFunction(() => document.querySelector("[data-testid=text-input]").value === "");
}

// Says something until the other page shows it: the node of the one has to learn of the join of the other.
async function reach(from, to, text) {
  const end = performance.now() + TIMEOUT_MS;
  while ((await withText(to, text).count()) === 0) {
    assert(performance.now() < end, `${text}: not within ${TIMEOUT_MS} ms`);
    await say(from, text);
    await to.waitForTimeout(PROBE_PAUSE_MS);
  }
}

async function screenshot(page, name) {
  await page.screenshot({ path: `${options.screenshots}/${name}.png` });
}

// Who is in the room that the page shows, and how many.
async function people(page, room, ...expected) {
  await page.waitForFunction(([room, expected]) => {
    const listed = [...document.querySelectorAll("[data-testid=person]")].map((person) => person.textContent);
    const count = document.querySelector(`[data-testid="count-${room}"]`);
    return count?.textContent === String(expected.length) && listed.sort().join() === expected.join();
  }, [room, expected.sort()]);
}

const seen = (page, text, what) => withText(page, text).getByText(what, { exact: true }).first().waitFor();

async function talk(first, second) {
  assert.equal(await first.getByTestId("node").textContent(), "a");
  assert.equal(await second.getByTestId("node").textContent(), "b");
  assert(await first.getByLabel("Message", { exact: true }).isDisabled(), "nobody talks outside of a room");
  for (const [page, name] of [[first, "Ann"], [second, "Bob"]]) {
    await page.getByLabel("Your name").fill(name);
    await page.getByLabel("Your name").press("Enter");
  }
  await join(first, "lobby");
  await people(first, "lobby", "Ann (you) on a");
  await second.getByRole("button", { name: "Join lobby" }).click();
  await people(first, "lobby", "Ann (you) on a", "Bob on b");
  await people(second, "lobby", "Bob (you) on b", "Ann on a");
  assert.equal(await first.getByLabel("2 people in lobby, on all nodes").textContent(), "2");
  await reach(first, second, "Is anybody there?");
  await reach(second, first, "Yes, on the other node.");

  const answer = withText(first, "Yes, on the other node.").first();
  assert.equal(await answer.getByTestId("message-node").textContent(), "b");
  assert.equal(await answer.getByTestId("message-from").textContent(), "Bob");
  const own = withText(second, "Yes, on the other node.").first();
  assert.equal(await own.getByTestId("message-from").textContent(), "you");

  await say(first, "<b id=bold>Markup</b> stays text, and so does 日本語 🚀");
  await arrives(second, "<b id=bold>Markup</b> stays text, and so does 日本語 🚀");
  assert.equal(await second.locator("#bold").count(), 0);
  await seen(first, "Markup", "seen by 1 of 1");
}

// Rooms are apart: what is said in one is not shown in another, and counts as new for who is in both.
async function rooms(first, second) {
  await join(first, "rust");
  await second.getByTestId("open-rust").click();
  await people(second, "rust", "Ann on a", "Bob (you) on b");
  await reach(second, first, "Only for Rust.");
  const unread = first.getByTestId("room-lobby");
  assert.equal(await unread.textContent(), "lobby");
  await second.getByTestId("room-lobby").click();
  await say(second, "Back in the lobby.");
  await first.getByText("lobby (1 new)").waitFor();
  // Unread is unseen.
  await seen(second, "Back in the lobby.", "seen by 0 of 1");
  assert.equal(await withText(first, "Back in the lobby.").count(), 0);
  await unread.click();
  await arrives(first, "Back in the lobby.");
  assert.equal(await withText(first, "Only for Rust.").count(), 0);

  await second.getByRole("button", { name: "Leave rust" }).click();
  await second.getByTestId("room-rust").waitFor({ state: "detached" });
  await second.getByTestId("open-rust").waitFor();
  await screenshot(second, "open");
  await first.getByTestId("room-rust").click();
  await people(first, "rust", "Ann (you) on a");
  await first.getByRole("button", { name: "Leave rust" }).click();
  // Nobody is left in it, on any node.
  await second.getByTestId("open-rust").waitFor({ state: "detached" });
  assert.equal(await first.getByTestId("open").getByRole("button").count(), 0);
}

async function refusal(page) {
  await page.getByLabel("Message", { exact: true }).fill("x".repeat(5000));
  await page.getByRole("button", { name: "Send" }).click();
  await page.getByRole("alert").getByText("the limit is 4096").waitFor();
  await screenshot(page, "refused");
  await say(page, "Shorter.");
  await page.waitForFunction(() => document.querySelector("[data-testid=error]").textContent === "");
}

async function restart(first, second) {
  await ask("stop the second node");
  await state(second, "disconnected");
  assert(await second.getByLabel("Message", { exact: true }).isDisabled(), "nobody talks without a connection");
  assert(await second.getByTestId("join").isDisabled() && await second.getByTestId("leave-lobby").isDisabled());
  await say(first, "Still here without you.");
  await seen(first, "Still here without you.", "seen by 0 of 0, no answer from b");
  await screenshot(second, "disconnected");
  await ask("start the second node");
  await state(second, "connected");
  await people(first, "lobby", "Ann (you) on a", "Bob on b");
  await reach(first, second, "Welcome back.");
  await reach(second, first, "What did I miss?");
  // What it said as another socket is still its own.
  const own = withText(second, "Back in the lobby.").first();
  await second.getByTestId("room-lobby").click();
  assert.equal(await own.getByTestId("message-from").textContent(), "you");
}

await mkdir(options.screenshots, { recursive: true });
const browser = await launch(options.chromium);
try {
  const size = { width: 1000, height: 640 };
  const first = await open(browser, options.first, { viewport: size, colorScheme: "light" });
  const second = await open(browser, options.second, { viewport: size, colorScheme: "dark" });
  console.log("opened");
  await talk(first, second);
  console.log("talked");
  await rooms(first, second);
  await screenshot(first, "light");
  await screenshot(second, "dark");
  console.log("kept rooms apart");
  await refusal(first);
  await restart(first, second);
  await first.setViewportSize({ width: 390, height: 760 });
  await withText(first, "What did I miss?").last().waitFor();
  await first.waitForFunction(() => {
    const list = document.querySelector("[data-testid=messages]");
    return list.scrollHeight > list.clientHeight && list.scrollHeight - list.scrollTop - list.clientHeight < 2;
  });
  await screenshot(first, "phone");
  assert.deepEqual(faults, []);
  console.log("done");
} finally {
  await browser.close();
}
process.exit(0);
