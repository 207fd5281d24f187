// Sends one request with @x402/fetch, paying if asked, and prints {status, headers, body} as JSON.
// Usage: PAYER_KEY=0x... node pay.mjs URL [METHOD [BODY [HEADERS as JSON]]]
import { ExactEvmScheme } from "@x402/evm";
import { wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { privateKeyToAccount } from "viem/accounts";

const [url, method = "GET", body, headers = "{}"] = process.argv.slice(2);
const account = privateKeyToAccount(process.env.PAYER_KEY);
const client = new x402Client().register("eip155:84532", new ExactEvmScheme(account));

const reply = await wrapFetchWithPayment(fetch, client)(url, { method, body, headers: JSON.parse(headers) });
const answer = { status: reply.status, headers: Object.fromEntries(reply.headers), body: await reply.text() };
console.log(JSON.stringify(answer));
