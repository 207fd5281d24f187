// A GPU vendor on @x402/express: the vendor API, its submission behind the official payment middleware.
// Usage: PAY_TO=0x... FACILITATOR_URL=http://... SECRET=... [FORGETFUL=1] node vendor.mjs
// Prints its port. FORGETFUL: it finds no job by its key.
import { createHash } from "node:crypto";
import { ExactEvmScheme } from "@x402/evm/exact/server";
import { HTTPFacilitatorClient } from "@x402/core/server";
import { paymentMiddleware, x402ResourceServer } from "@x402/express";
import express from "express";

const { PAY_TO, FACILITATOR_URL, SECRET, FORGETFUL } = process.env;
const NETWORK = "eip155:84532";
const USDC = "0x036CbD53842c5426634e7929541eC2318f3dCF7e";
const PER_HOUR = 1.4;
const RESULT = "weights";

const jobs = new Map(); // by id
const heard = []; // the payment headers of paid submissions, in order

const app = express();
app.use(express.json());
app.get("/heard", (_, res) => res.json({ heard, jobs: jobs.size }));
app.get("/files/:name", (_, res) => res.send(RESULT));
app.use((req, res, next) =>
  req.header("authorization") === `Bearer ${SECRET}` ? next() : res.status(401).json({ error: "no" }),
);
app.use((req, _, next) => {
  const header = req.header("payment-signature");
  if (header) heard.push(header);
  next();
});

const price = ({ adapter }) => {
  const hours = Number(adapter.getBody().vendorJobTemplateId.replace("tmpl_", ""));
  return { amount: String(Math.round(hours * PER_HOUR * 1e6)), asset: USDC, extra: { name: "USDC", version: "2" } };
};
const accepts = { scheme: "exact", network: NETWORK, payTo: PAY_TO, price, maxTimeoutSeconds: 300 };
const server = new x402ResourceServer(new HTTPFacilitatorClient({ url: FACILITATOR_URL }));
server.register(NETWORK, new ExactEvmScheme());
app.use(paymentMiddleware({ "POST /submit-job": { accepts, description: "A GPU job" } }, server));

const offer = { gpuType: "A10", pricePerHour: PER_HOUR, currency: "USDC", asset: USDC, network: NETWORK };
app.get("/offers", (_, res) =>
  res.json({ vendorId: "gpu_vendor_1", name: "Express GPU", offers: [{ ...offer, payTo: PAY_TO, available: 1 }] }),
);
app.post("/quote", ({ body }, res) => {
  const priceEstimate = Number((body.maxHours * PER_HOUR).toFixed(6));
  res.json({ vendorJobTemplateId: `tmpl_${body.maxHours}`, priceEstimate, currency: "USDC", etaMinutes: 60 });
});
app.post("/submit-job", (req, res) => {
  const vendorJobId = `job-${jobs.size + 1}`;
  jobs.set(vendorJobId, { key: req.header("idempotency-key"), polls: 0 });
  res.json({ vendorJobId, status: "submitted" });
});
app.get("/jobs", ({ query }, res) => {
  const found = FORGETFUL ? [] : [...jobs].filter(([, job]) => job.key === query.key);
  res.json({ jobs: found.map(([vendorJobId]) => ({ vendorJobId, status: "running" })) });
});
app.get("/job-status", ({ query: { vendorJobId } }, res) => {
  const done = ++jobs.get(vendorJobId).polls > 1;
  const end = done ? { finalMetrics: { loss: 0.5 } } : {};
  const status = { status: done ? "completed" : "running", progress: done ? 1 : 0.5, cursor: "1", logs: [] };
  res.json({ vendorJobId, ...status, costSoFar: PER_HOUR, ...end });
});
app.get("/artifacts/:id", (req, res) => {
  const url = `http://${req.header("host")}/files/weights.bin`;
  const sha256 = createHash("sha256").update(RESULT).digest("hex");
  res.json({ artifacts: [{ name: "weights.bin", bytes: RESULT.length, sha256, url }] });
});

const listening = app.listen(0, "127.0.0.1", () => console.log(listening.address().port));
