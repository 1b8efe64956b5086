// The official TypeScript SDK as a peer. One JSON request a line on stdin, one JSON answer a line on stdout:
//   {"id": 1, "op": "serve", ...}  ->  {"id": 1, "result": {...}}  or  {"id": 1, "error": "..."}
import readline from "node:readline";

import { buy, readOffers } from "./buyer.mjs";
import { close, serve } from "./sellers.mjs";

const operations = { buy, readOffers, serve, close };

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { id, op, ...options } = JSON.parse(line);
  // Not awaited: a buyer and the seller it waits for live in this one process.
  answer(id, operations[op](options));
}
process.exit(0);

async function answer(id, outcome) {
  let reply;
  try {
    reply = { id, result: (await outcome) ?? null };
  } catch (error) {
    reply = { id, error: error instanceof Error ? (error.stack ?? error.message) : String(error) };
  }
  process.stdout.write(JSON.stringify(reply) + "\n");
}
