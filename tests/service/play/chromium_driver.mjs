// A real Chromium for tests in Python: a line of JSON with code comes in, its result goes out as a line of JSON.
//
// Arguments: the path of chromium, and further flags of it. The code is the body of an async function of `page` and
// `axe`, the source of axe-core, and `seen`: console errors, and every request with its address and size.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const load = createRequire(`${process.env.PAGE_TOOLS}/`);
const { chromium } = load("playwright-core");
const axe = readFileSync(load.resolve("axe-core/axe.min.js"), "utf8");
const [, , executablePath, settings, ...args] = process.argv;
const browser = await chromium.launch({ executablePath, args });
const context = await browser.newContext(JSON.parse(settings));
const page = await context.newPage();
const seen = { errors: [], requests: [] };
page.on("console", (message) => { if (message.type() === "error") seen.errors.push(message.text()); });
page.on("pageerror", (error) => seen.errors.push(String(error)));
page.on("requestfinished", async (request) => {
  const { responseBodySize } = await request.sizes();
  seen.requests.push({ url: request.url(), bytes: responseBodySize });
});
const Code = Object.getPrototypeOf(async () => {}).constructor;
for await (const line of createInterface({ input: process.stdin })) {
  let reply;
  try {
    reply = { result: (await new Code("page", "axe", "seen", JSON.parse(line))(page, axe, seen)) ?? null };
  } catch (error) {
    reply = { error: String(error) };
  }
  process.stdout.write(`${JSON.stringify(reply)}\n`);
}
await browser.close();
