// Calls of the TypeScript client for tests/clients/node_client.py: a line of JSON in, a line out. Argument: the module,
// the service's URL, the client's options. Integers beyond 2^53 come as {"bigint": "..."}, infinity as {"number": "..."}.
import { createInterface } from "node:readline";

const [module, url, options] = process.argv.slice(2);
const { Client } = await import(module);
const client = new Client(url, JSON.parse(options));
const revive = (_, value) => {
  if (typeof value?.number === "string") return Number(value.number);
  return typeof value?.bigint === "string" ? BigInt(value.bigint) : value;
};

const shown = (error) => ({ error: error.name, ...error, message: error.message });

for await (const line of createInterface({ input: process.stdin })) {
  const [method, ...given] = JSON.parse(line, revive);
  let reply;
  try {
    const value = (await client[method](...given)) ?? null;
    reply = { value: Array.isArray(value) ? value.map((one) => (one instanceof Error ? shown(one) : one)) : value };
  } catch (error) {
    reply = shown(error);
  }
  console.log(JSON.stringify(reply));
}
