// What the tests of pages have in common.
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

// As long as the tests wait for anything.
export const TIMEOUT_MS = 40_000;

const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

// What a script cannot do itself, it asks for with a line on standard output, and waits for a line on standard input.
export async function ask(what) {
  console.log(what);
  await answers.next();
}

export function launch(program) {
  return chromium.launch({
    executablePath: program,
    headless: true,
    timeout: TIMEOUT_MS,
    // `--headless`, an empty profile of its own and no calls home come with the library; these are what it leaves out.
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
      "--disable-background-networking", "--disable-sync"],
  });
}
