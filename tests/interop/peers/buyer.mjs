import { require } from "./packages.mjs";

const { wrapFetchWithPaymentFromConfig } = require("@x402/fetch");
const { decodePaymentRequiredHeader, decodePaymentResponseHeader } = require("@x402/core/http");
const { ExactEvmScheme } = require("@x402/evm/exact/client");
const { UptoEvmScheme } = require("@x402/evm/upto/client");
const { privateKeyToAccount } = require("viem/accounts");

// POSTs `body` to `url` with @x402/fetch, paying with `key` in any of `assets`, each up to its own cap. With `release`,
// posts there as soon as the first piece of the answer has come, and reads the rest after. With `rpcUrl` the client can
// see on chain whether it must approve Permit2.
export async function buy({ url, body, key, network, assets, release, rpcUrl }) {
  const account = privateKeyToAccount(key);
  const paying = wrapFetchWithPaymentFromConfig(fetch, {
    schemes: [
      { network, client: new ExactEvmScheme(account, rpcUrl ? { rpcUrl } : undefined) },
      { network, client: new UptoEvmScheme(account) },
    ],
    spendControls: {
      allowedAssets: assets.map(({ asset, cap }) => ({ network, asset, maxAmountPerPayment: cap })),
    },
  });
  const response = await paying(url, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const receipt = response.headers.get("PAYMENT-RESPONSE");
  const { text, flowed } = await read(response, release);
  const decoded = receipt === null ? null : decodePaymentResponseHeader(receipt);
  const told = receipt ?? response.headers.get("PAYMENT-REQUIRED") ?? "";
  return { status: response.status, body: text, told, decoded, flowed };
}

export async function readOffers({ header }) {
  return decodePaymentRequiredHeader(header);
}

async function read(response, release) {
  const decoder = new TextDecoder();
  let text = "";
  let flowed = null;
  for await (const piece of response.body) {
    text += decoder.decode(piece, { stream: true });
    if (release !== null && flowed === null) {
      flowed = true;
      await fetch(release, { method: "POST" });
    }
  }
  return { text: text + decoder.decode(), flowed };
}
