// Calls of the service by fetch or by the TypeScript client, for benchmarks/client_calls.py. Arguments: the client's
// module, the service's URL, a file with a request, the deadline in milliseconds. A line of input says how to call, and
// its answer has the calls by their end, the milliseconds in which they began, and the client's counts.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const [module, url, file, deadline] = process.argv.slice(2);
const { Client } = await import(module);
const request = JSON.parse(readFileSync(file, "utf8"));
const timeoutMs = Number(deadline);
const headers = { "Content-Type": "application/json", "X-Request-Timeout-Ms": String(timeoutMs) };
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function bare() {
  const signal = AbortSignal.timeout(timeoutMs);
  try {
    const options = { method: "POST", headers, body: JSON.stringify(request), signal };
    const response = await fetch(`${url}/v1/rank`, options);
    await response.json();
    return response.status === 200 ? "answered" : `status ${response.status}`;
  } catch {
    return signal.aborted ? "timeout" : "connection";
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const { isBare, asking, rate, ms } = JSON.parse(line);
  const client = new Client(url, { timeoutMs });
  const call = isBare ? bare : async () => (await client.rank(request, { fallback: [] })).reason ?? "answered";
  const calls = {};
  const count = async () => {
    const end = await call();
    calls[end] = (calls[end] ?? 0) + 1;
  };
  const begun = performance.now();
  const running = [];
  if (rate === undefined) {
    for (let number = 0; number < asking; number += 1) {
      running.push(
        (async () => {
          while (performance.now() < begun + ms) await count();
        })(),
      );
    }
  } else {
    for (let number = 0; number < (rate * ms) / 1000; number += 1) {
      await sleep(Math.max(begun + (1000 * number) / rate - performance.now(), 0));
      running.push(count());
    }
  }
  // Of calls without pause, the whole.
  const begunMs = rate === undefined ? ms : performance.now() - begun;
  await Promise.all(running);
  await client.close();
  console.log(JSON.stringify({ calls, ms: begunMs, counts: client.counts() }));
}
