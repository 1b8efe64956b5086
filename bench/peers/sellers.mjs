// Sells one route with the official TypeScript middleware: node sellers.mjs express|hono PATH FACILITATOR OPTION
// OPTION is the route's payment option as the SDK takes it, in JSON. Prints the port; ends with its standard input.
import { createRequire } from "node:module";

const require = createRequire(process.env.FAREBOX_INTEROP_PACKAGES);
const { HTTPFacilitatorClient } = require("@x402/core/server");
const { ExactEvmScheme } = require("@x402/evm/exact/server");

const [kind, path, facilitator, optionText] = process.argv.slice(2);
const option = JSON.parse(optionText);
const routes = { [`POST ${path}`]: { accepts: option, description: "one call", mimeType: "application/json" } };

function middleware(sdk) {
  const client = new HTTPFacilitatorClient({ url: facilitator });
  const server = new sdk.x402ResourceServer(client).register(option.network, new ExactEvmScheme());
  return sdk.paymentMiddleware(routes, server);
}

function onExpress(ready) {
  const express = require("express");
  const app = express();
  app.use(middleware(require("@x402/express")));
  app.post(path, (_, response) => response.json({ ok: true }));
  const server = app.listen(0, "127.0.0.1", () => ready(server.address().port));
}

function onHono(ready) {
  const { serve } = require("@hono/node-server");
  const { Hono } = require("hono");
  const app = new Hono();
  app.use(middleware(require("@x402/hono")));
  app.post(path, (context) => context.json({ ok: true }));
  serve({ fetch: app.fetch, port: 0, hostname: "127.0.0.1" }, ({ port }) => ready(port));
}

({ express: onExpress, hono: onHono })[kind]((port) => console.log(port));
process.stdin.on("end", () => process.exit()).resume();
