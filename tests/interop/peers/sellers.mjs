import { isDeepStrictEqual } from "node:util";

import { require } from "./packages.mjs";

const { serve: serveHono } = require("@hono/node-server");
const { decodePaymentSignatureHeader } = require("@x402/core/http");
const { HTTPFacilitatorClient } = require("@x402/core/server");
const { ExactEvmScheme } = require("@x402/evm/exact/server");
const { UptoEvmScheme } = require("@x402/evm/upto/server");
const onExpress = require("@x402/express");
const onHono = require("@x402/hono");
const express = require("express");
const { Hono } = require("hono");

// An extension that nobody knows and every client must echo.
const FOREIGN = "acme-loyalty";
const FOREIGN_INFO = { programme: "gold", tiers: [1, 2], since: { year: 2026 } };

const open = new Map();
const kinds = { express: openExpress, hono: openHono };

// Sells POST `path` of the server at `upstream` on loopback. `option` is the route's payment option as the SDK takes it;
// `perToken`, for upto, is what a token of input and of output costs. Returns the seller's URL.
export async function serve({ kind, path, upstream, facilitator, option, perToken }) {
  const sell = (body) => goods(upstream + path, body, perToken);
  const server = await kinds[kind]({ path, facilitator, option, sell });
  const url = `http://127.0.0.1:${server.address().port}`;
  open.set(url, server);
  return { url };
}

export async function close({ url }) {
  const server = open.get(url);
  open.delete(url);
  server.closeAllConnections();
  await new Promise((done) => server.close(done));
}

function openExpress({ path, facilitator, option, sell }) {
  const app = express();
  app.use(express.json());
  app.use(onExpress.paymentMiddleware(routes(path, option), resourceServer(onExpress, facilitator, option.network)));
  app.post(path, async (request, response) => {
    checkEcho(request.get("payment-signature"));
    const { status, type, pieces, amount } = await sell(request.body);
    if (amount !== null) onExpress.setSettlementOverrides(response, { amount });
    response.status(status).setHeader("content-type", type);
    for await (const piece of pieces) response.write(piece);
    response.end();
  });
  return listening(app.listen(0, "127.0.0.1"));
}

function openHono({ path, facilitator, option, sell }) {
  const app = new Hono();
  app.use(onHono.paymentMiddleware(routes(path, option), resourceServer(onHono, facilitator, option.network)));
  app.post(path, async (context) => {
    checkEcho(context.req.header("payment-signature"));
    const { status, type, pieces, amount } = await sell(await context.req.json());
    if (amount !== null) onHono.setSettlementOverrides(context, { amount });
    return context.body(ReadableStream.from(pieces), status, { "content-type": type });
  });
  return listening(serveHono({ fetch: app.fetch, port: 0, hostname: "127.0.0.1" }));
}

function routes(path, option) {
  const extensions = { [FOREIGN]: { info: FOREIGN_INFO, schema: {} } };
  return { [`POST ${path}`]: { accepts: option, description: "Chat", mimeType: "application/json", extensions } };
}

function checkEcho(payment) {
  const { extensions } = decodePaymentSignatureHeader(payment);
  if (!isDeepStrictEqual(extensions?.[FOREIGN]?.info, FOREIGN_INFO)) {
    throw new Error("the client did not echo the foreign extension");
  }
}

function resourceServer(sdk, facilitator, network) {
  return new sdk.x402ResourceServer(new HTTPFacilitatorClient({ url: facilitator }))
    .register(network, new ExactEvmScheme())
    .register(network, new UptoEvmScheme());
}

// The answer of the server behind, piece by piece as it comes; with `perToken` whole, since what it costs is in its end.
async function goods(url, body, perToken) {
  const withUsage = perToken !== null && body.stream;
  const answer = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(withUsage ? { ...body, stream_options: { include_usage: true } } : body),
  });
  const told = { status: answer.status, type: answer.headers.get("content-type") };
  if (perToken === null) return { ...told, pieces: answer.body, amount: null };
  const text = await answer.text();
  const usage = JSON.parse(text.match(/"usage":(\{[^{}]*\})/)[1]);
  const amount = String(usage.prompt_tokens * perToken.input + usage.completion_tokens * perToken.output);
  const frames = text.split(/(?<=\n\n)/).filter((frame) => !frame.includes('"choices":[]'));
  return { ...told, pieces: frames.map((frame) => new TextEncoder().encode(frame)), amount };
}

function listening(server) {
  return new Promise((done, failed) => {
    server.once("error", failed);
    if (server.listening) done(server);
    else server.once("listening", () => done(server));
  });
}
