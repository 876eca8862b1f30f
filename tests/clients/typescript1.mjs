// The TypeScript SDK 1.x as a client, which knows the older era alone: `typescript1.mjs URL legacy`.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import * as types from "@modelcontextprotocol/sdk/types.js";
import { answers, common, report } from "./probes.mjs";

const capabilities = { elicitation: {}, sampling: {}, roots: {} };
const client = new Client({ name: "typescript1", version: "1" }, { capabilities });
client.oldSdk = true;
const told = [];
client.setRequestHandler(types.ElicitRequestSchema, ({ params }) => answers.elicitation(params));
client.setRequestHandler(types.CreateMessageRequestSchema, () => answers.sampling());
client.setRequestHandler(types.ListRootsRequestSchema, () => answers.roots());
client.setNotificationHandler(types.LoggingMessageNotificationSchema, () => void told.push("message"));
client.setNotificationHandler(types.ResourceUpdatedNotificationSchema, () => void told.push("updated"));
const transport = new StreamableHTTPClientTransport(new URL(process.argv[2]));
await client.connect(transport);
await report({ version: async () => transport.protocolVersion, ...common(client, false, told) });
