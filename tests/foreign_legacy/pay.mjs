// Sends one request with x402-fetch (x402 version 1), paying if asked, and prints {status, headers, body} as JSON.
// Usage: PAYER_KEY=0x... node pay.mjs URL [METHOD [BODY [HEADERS as JSON]]]
import { createWalletClient, http } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { baseSepolia } from "viem/chains";
import { wrapFetchWithPayment } from "x402-fetch";

const [url, method = "GET", body, headers = "{}"] = process.argv.slice(2);
const account = privateKeyToAccount(process.env.PAYER_KEY);
const wallet = createWalletClient({ account, chain: baseSepolia, transport: http() });
const atomicMax = 1_000_000n;

const pay = wrapFetchWithPayment(fetch, wallet, atomicMax);
const reply = await pay(url, { method, body, headers: JSON.parse(headers) });
const answer = { status: reply.status, headers: Object.fromEntries(reply.headers), body: await reply.text() };
console.log(JSON.stringify(answer));
