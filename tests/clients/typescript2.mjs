// The TypeScript SDK 2.x as a client: `typescript2.mjs URL legacy|auto|2026-07-28`.

import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { answers, common, report } from "./probes.mjs";

const [url, mode] = process.argv.slice(2);
const capabilities = { elicitation: {}, sampling: {}, roots: {} };
const negotiation = mode === "legacy" || mode === "auto" ? mode : { pin: mode };
const options = { capabilities, versionNegotiation: { mode: negotiation } };
const client = new Client({ name: "typescript2", version: "1" }, options);
const told = [];
client.setRequestHandler("elicitation/create", ({ params }) => answers.elicitation(params));
client.setRequestHandler("sampling/createMessage", () => answers.sampling());
client.setRequestHandler("roots/list", () => answers.roots());
client.setNotificationHandler("notifications/message", () => void told.push("message"));
client.setNotificationHandler("notifications/resources/updated", () => void told.push("updated"));
client.setNotificationHandler("notifications/tools/list_changed", () => void told.push("tools"));
await client.connect(new StreamableHTTPClientTransport(new URL(url)));
const version = client.getNegotiatedProtocolVersion();
await report({ version: async () => version, ...common(client, version >= "2026", told) });
