// npm's facilitator of x402 on one chain, settling with viem: POST /verify, POST /settle, GET /supported.
// Usage: FACILITATOR_KEY=0x... RPC_URL=http://... node facilitator.mjs
// Prints its port.
import { x402Facilitator } from "@x402/core/facilitator";
import { toFacilitatorEvmSigner } from "@x402/evm";
import { registerExactEvmScheme } from "@x402/evm/exact/facilitator";
import express from "express";
import { createWalletClient, http, publicActions } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { baseSepolia } from "viem/chains";

const { FACILITATOR_KEY, RPC_URL } = process.env;
const account = privateKeyToAccount(FACILITATOR_KEY);
const client = createWalletClient({ account, chain: baseSepolia, transport: http(RPC_URL), pollingInterval: 50 });
const signer = toFacilitatorEvmSigner({ ...client.extend(publicActions), address: account.address });
const facilitator = registerExactEvmScheme(new x402Facilitator(), { signer, networks: "eip155:84532" });

const app = express();
app.use(express.json());
const asked = [];
for (const verb of ["verify", "settle"])
  app.post(`/${verb}`, async ({ body }, res) => {
    asked.push(verb);
    res.json(await facilitator[verb](body.paymentPayload, body.paymentRequirements));
  });
app.get("/supported", (_, res) => res.json(facilitator.getSupported()));
app.get("/asked", (_, res) => res.json(asked));

const listening = app.listen(0, "127.0.0.1", () => console.log(listening.address().port));
