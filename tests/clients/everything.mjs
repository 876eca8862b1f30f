// Everything that the conformance suite asks a server for, on the TypeScript SDK 1.x, which speaks the older era only.
//
// `everything.mjs stdio` is bridged; `everything.mjs http PORT` is the same server native, which the bridged one is
// compared with. Names and texts of tools, resources and prompts are those that the suite looks for.

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { createMcpExpressApp } from "@modelcontextprotocol/sdk/server/express.js";
import { Server } from "@modelcontextprotocol/sdk/server/index.js";
import { StdioServerTransport } from "@modelcontextprotocol/sdk/server/stdio.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
import * as types from "@modelcontextprotocol/sdk/types.js";

const PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==";
const SILENCE = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA=";
const text = (words) => ({ type: "text", text: words });
const image = { type: "image", data: PIXEL, mimeType: "image/png" };
const embedded = (uri, mimeType, words) => ({ type: "resource", resource: { uri, mimeType, text: words } });
const data = embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}');
const titled = (...names) => names.map((name) => ({ const: name, title: name.toUpperCase() }));

const schema2020 = {
  $schema: "https://json-schema.org/draft/2020-12/schema",
  type: "object",
  $defs: {
    address: {
      $anchor: "addressDef",
      type: "object",
      properties: { street: { type: "string" }, city: { type: "string" } },
    },
  },
  properties: {
    name: { type: "string" },
    address: { $ref: "#/$defs/address" },
    contactMethod: { type: "string", enum: ["phone", "email"] },
    phone: { type: "string" },
    email: { type: "string" },
  },
  allOf: [{ anyOf: [{ required: ["phone"] }, { required: ["email"] }] }],
  if: { properties: { contactMethod: { const: "phone" } }, required: ["contactMethod"] },
  then: { required: ["phone"] },
  else: { required: ["email"] },
  additionalProperties: false,
};

const defaults = {
  name: { type: "string", default: "John Doe" },
  age: { type: "integer", default: 30 },
  score: { type: "number", default: 95.5 },
  status: { type: "string", enum: ["active", "inactive", "pending"], default: "active" },
  verified: { type: "boolean", default: true },
};

const enums = {
  untitledSingle: { type: "string", enum: ["option1", "option2", "option3"] },
  titledSingle: { type: "string", oneOf: titled("low", "medium", "high") },
  legacyEnum: { type: "string", enum: ["s", "m"], enumNames: ["Small", "Medium"] },
  untitledMulti: { type: "array", items: { type: "string", enum: ["read", "write"] } },
  titledMulti: { type: "array", items: { anyOf: titled("bug", "feature", "docs") } },
};

// Each tool is given its arguments and what else there is of the request, and answers with content.
const asks = (message, properties) => async (_arguments, { sendRequest }) => {
  const params = { message, requestedSchema: { type: "object", properties, required: [] } };
  const answer = await sendRequest({ method: "elicitation/create", params }, types.ElicitResultSchema);
  return [text(`action=${answer.action}, content=${JSON.stringify(answer.content ?? {})}`)];
};

const tools = {
  test_simple_text: async () => [text("This is a simple text response for testing.")],
  test_image_content: async () => [image],
  test_audio_content: async () => [{ type: "audio", data: SILENCE, mimeType: "audio/wav" }],
  test_embedded_resource: async () => [
    embedded("test://embedded-resource", "text/plain", "This is an embedded resource content."),
  ],
  test_multiple_content_types: async () => [text("Multiple content types test:"), image, data],
  test_error_handling: async () => {
    throw new Error("This tool intentionally returns an error for testing");
  },
  test_tool_with_logging: async (_arguments, { sendNotification }) => {
    for (const words of ["Tool execution started", "Tool processing data", "Tool execution completed"]) {
      await sendNotification({ method: "notifications/message", params: { level: "info", data: words } });
      await sleep(50);
    }
    return [text("Tool with logging executed successfully")];
  },
  test_tool_with_progress: async (_arguments, { sendNotification, _meta }) => {
    for (const progress of [0, 50, 100]) {
      const params = { progressToken: _meta?.progressToken ?? 0, progress, total: 100, message: `step ${progress}` };
      await sendNotification({ method: "notifications/progress", params });
      await sleep(50);
    }
    return [text("done")];
  },
  test_reconnection: async (_arguments, { closeSSEStream }) => {
    closeSSEStream?.();
    await sleep(200);
    return [text("Reconnection test completed")];
  },
  wait: async ({ seconds }, { signal }) => {
    signal.addEventListener("abort", () => console.error("the wait was cancelled"));
    await sleep(seconds * 1000, undefined, { signal });
    return [text("waited")];
  },
  test_sampling: async ({ prompt }, { sendRequest }) => {
    const params = { messages: [{ role: "user", content: text(prompt) }], maxTokens: 100 };
    const answer = await sendRequest({ method: "sampling/createMessage", params }, types.CreateMessageResultSchema);
    return [text(`LLM response: ${answer.content.text}`)];
  },
  ask_roots: async (_arguments, { sendRequest }) => {
    const answer = await sendRequest({ method: "roots/list" }, types.ListRootsResultSchema);
    return [text(answer.roots.map((root) => root.uri).join(", "))];
  },
  test_elicitation: async ({ message }, extra) => asks(message, { response: { type: "string" } })({}, extra),
  test_elicitation_sep1034_defaults: asks("Who are you?", defaults),
  test_elicitation_sep1330_enums: asks("Choose", enums),
  json_schema_2020_12_tool: async () => [text("ok")],
  // What the suite calls by the names of the modern era: a bridge makes rounds of it.
  test_input_required_result_elicitation: asks("What is your name?", { name: { type: "string" } }),
  test_input_required_result_sampling: async (_arguments, extra) =>
    tools.test_sampling({ prompt: "What is the capital of France?" }, extra),
  test_input_required_result_list_roots: async (_arguments, extra) => tools.ask_roots({}, extra),
  test_input_required_result_request_state: asks("Is it so?", { ok: { type: "boolean" } }),
  test_input_required_result_tampered_state: asks("Is it so?", { ok: { type: "boolean" } }),
  test_input_required_result_multiple_inputs: async (_arguments, extra) => {
    const asked = [
      asks("What is your name?", { name: { type: "string" } })({}, extra),
      tools.test_sampling({ prompt: "Greet me" }, extra),
      tools.ask_roots({}, extra),
    ];
    return (await Promise.all(asked)).flat();
  },
  test_input_required_result_multi_round: async (_arguments, extra) => [
    ...(await asks("Step 1: your name?", { name: { type: "string" } })({}, extra)),
    ...(await asks("Step 2: your favorite color?", { color: { type: "string" } })({}, extra)),
  ],
  test_trigger_tool_change: async (_arguments, _extra, session) => {
    await session.server.sendToolListChanged();
    return [text("changed")];
  },
  touch: async ({ uri }, { sendNotification }, session) => {
    const told = session.watching.has(uri);
    if (told) await session.server.sendResourceUpdated({ uri });
    return [text(told ? "1 told" : "0 told")];
  },
};

const schemas = {
  json_schema_2020_12_tool: schema2020,
  wait: { type: "object", properties: { seconds: { type: "number" } }, required: ["seconds"] },
  test_sampling: { type: "object", properties: { prompt: { type: "string" } }, required: ["prompt"] },
  test_elicitation: { type: "object", properties: { message: { type: "string" } }, required: ["message"] },
  touch: { type: "object", properties: { uri: { type: "string" } }, required: ["uri"] },
};

const resources = {
  "test://static-text": { mimeType: "text/plain", text: "This is the content of the static text resource." },
  "test://static-binary": { mimeType: "image/png", blob: PIXEL },
  "test://watched-resource": { mimeType: "text/plain", text: "watched" },
};

const said = (...contents) => ({ messages: contents.map((content) => ({ role: "user", content })) });
const prompts = {
  test_simple_prompt: [[], () => said(text("This is a simple prompt for testing."))],
  test_prompt_with_arguments: [
    ["arg1", "arg2"],
    ({ arg1, arg2 }) => said(text(`Prompt with arguments: arg1='${arg1}', arg2='${arg2}'`)),
  ],
  test_prompt_with_embedded_resource: [
    ["resourceUri"],
    ({ resourceUri }) =>
      said(
        embedded(resourceUri, "text/plain", "Embedded resource content for testing."),
        text("Please process the embedded resource above."),
      ),
  ],
  test_prompt_with_image: [[], () => said(image, text("Please analyze the image above."))],
};

function read(uri) {
  const found = resources[uri];
  const id = /^test:\/\/template\/([^/]+)\/data$/.exec(uri)?.[1];
  if (!found && !id) throw new types.McpError(-32002, "Resource not found", { uri });
  const filled = { mimeType: "application/json", text: JSON.stringify({ id, templateTest: true, data: `Data for ID: ${id}` }) };
  return { contents: [{ uri, ...(found ?? filled) }] };
}

async function call(session, { name, arguments: given }, extra) {
  const tool = tools[name];
  if (!tool) throw new types.McpError(types.ErrorCode.InvalidParams, `no tool ${name}`);
  try {
    return { content: await tool(given ?? {}, extra, session) };
  } catch (error) {
    return { content: [text(error.message)], isError: true };
  }
}

function createServer() {
  const capabilities = {
    tools: { listChanged: true },
    resources: { subscribe: true, listChanged: true },
    prompts: { listChanged: true },
    logging: {},
    completions: {},
  };
  const server = new Server({ name: "everything", version: "1" }, { capabilities });
  const session = { server, watching: new Set() };
  const on = (schema, handler) => server.setRequestHandler(schema, ({ params }, extra) => handler(params, extra));
  on(types.ListToolsRequestSchema, () => ({
    tools: Object.keys(tools).map((name) => ({
      name,
      description: name.replaceAll("_", " "),
      inputSchema: schemas[name] ?? { type: "object", properties: {} },
    })),
  }));
  on(types.CallToolRequestSchema, (params, extra) => call(session, params, extra));
  on(types.ListResourcesRequestSchema, () => ({
    resources: Object.entries(resources).map(([uri, { mimeType }]) => ({ uri, name: uri.slice(7), description: uri, mimeType })),
  }));
  const template = { name: "template", description: "a template", uriTemplate: "test://template/{id}/data" };
  on(types.ListResourceTemplatesRequestSchema, () => ({ resourceTemplates: [template] }));
  on(types.ReadResourceRequestSchema, ({ uri }) => read(uri));
  on(types.SubscribeRequestSchema, ({ uri }) => (session.watching.add(uri), {}));
  on(types.UnsubscribeRequestSchema, ({ uri }) => (session.watching.delete(uri), {}));
  on(types.ListPromptsRequestSchema, () => ({
    prompts: Object.entries(prompts).map(([name, [names]]) => ({
      name,
      description: name.replaceAll("_", " "),
      arguments: names.map((argument) => ({ name: argument, description: argument, required: true })),
    })),
  }));
  on(types.GetPromptRequestSchema, (params) => prompts[params.name][1](params.arguments ?? {}));
  on(types.SetLevelRequestSchema, () => ({}));
  on(types.CompleteRequestSchema, () => ({ completion: { values: [], total: 0, hasMore: false } }));
  return server;
}

// Events of streams that broke, for clients that come back.
const events = [];
const eventStore = {
  storeEvent: async (stream, message) => String(events.push({ stream, message })),
  replayEventsAfter: async (last, { send }) => {
    const stream = events[Number(last) - 1]?.stream;
    for (const [index, event] of events.entries()) {
      const missed = index >= Number(last) && event.stream === stream && Object.keys(event.message).length > 0;
      if (missed) await send(String(index + 1), event.message);
    }
    return stream;
  },
};

async function transportOf(sessions, request) {
  const known = sessions.get(request.headers["mcp-session-id"]);
  if (known || request.body?.method !== "initialize") return known;
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: randomUUID,
    onsessioninitialized: (id) => sessions.set(id, transport),
    eventStore,
    retryInterval: 100,
  });
  transport.onclose = () => sessions.delete(transport.sessionId);
  await createServer().connect(transport);
  return transport;
}

if (process.argv[2] === "http") {
  const sessions = new Map();
  const application = createMcpExpressApp();
  application.all("/mcp", async (request, response) => {
    const transport = await transportOf(sessions, request);
    const unknown = request.headers["mcp-session-id"] ? 404 : 400;
    const error = { jsonrpc: "2.0", id: null, error: { code: -32000, message: "no such session" } };
    if (!transport) response.status(unknown).json(error);
    else await transport.handleRequest(request, response, request.body);
  });
  application.listen(Number(process.argv[3]), "127.0.0.1");
} else {
  await createServer().connect(new StdioServerTransport());
}
