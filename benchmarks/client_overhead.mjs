// CPU seconds of Node for a ranking, for benchmarks/client_overhead.py. Arguments: the client's module, the service's
// URL, a file with a request, and how many requests. A line of input is a way, and its answer the seconds a request.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const [module, url, file, count] = process.argv.slice(2);
const { Client } = await import(module);
const client = new Client(url, { timeoutMs: 60_000 });
const request = JSON.parse(readFileSync(file, "utf8"));
const headers = { "Content-Type": "application/json" };
const ways = {
  bare: async () => (await fetch(`${url}/v1/rank`, { method: "POST", headers, body: JSON.stringify(request) })).json(),
  client: () => client.rank(request),
};

for await (const way of createInterface({ input: process.stdin })) {
  const before = process.cpuUsage();
  for (let number = 0; number < Number(count); number += 1) await ways[way]();
  const { user, system } = process.cpuUsage(before);
  console.log((user + system) / 1e6 / Number(count));
}
