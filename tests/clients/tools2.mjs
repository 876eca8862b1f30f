// What the clients in this folder ask of a server, on the TypeScript SDK 2.x, which speaks both eras.
//
// `tools2.mjs stdio` is bridged. Names and texts of tools are those of `everything.mjs`.

import { setTimeout as sleep } from "node:timers/promises";
import { Server, inputRequired } from "@modelcontextprotocol/server";
import { serveStdio } from "@modelcontextprotocol/server/stdio";

const text = (words) => ({ type: "text", text: words });
const say = (words) => ({ content: [text(words)] });
const named = { type: "object", properties: { name: { type: "string" } }, required: ["name"] };
const elicited = { mode: "form", message: "What is your name?", requestedSchema: named };
const sampled = { messages: [{ role: "user", content: text("What is the capital of France?") }], maxTokens: 100 };

// What the client has said when it was asked, or that it must be.
const ask = (kind, key, request, words) => (_given, { mcpReq }) => {
  const answer = mcpReq.inputResponses?.[key];
  return answer ? say(words(answer)) : inputRequired({ inputRequests: { [key]: inputRequired[kind](request) } });
};

// Each tool is given its arguments, what else there is of the request, and the session.
const tools = {
  test_simple_text: () => say("This is a simple text response for testing."),
  test_tool_with_logging: async (_given, { mcpReq }) => {
    for (const words of ["Tool execution started", "Tool processing data", "Tool execution completed"]) {
      await mcpReq.log("info", words);
      await sleep(50);
    }
    return say("Tool with logging executed successfully");
  },
  test_tool_with_progress: async (_given, { mcpReq }) => {
    for (const progress of [0, 50, 100]) {
      const params = { progressToken: mcpReq._meta?.progressToken ?? 0, progress, total: 100 };
      await mcpReq.notify({ method: "notifications/progress", params });
      await sleep(50);
    }
    return say("done");
  },
  wait: async ({ seconds }, { mcpReq }) => {
    mcpReq.signal.addEventListener("abort", () => console.error("the wait was cancelled"));
    await sleep(seconds * 1000, undefined, { signal: mcpReq.signal });
    return say("waited");
  },
  test_elicitation: async ({ message }, { mcpReq }) =>
    say((await mcpReq.elicitInput({ ...elicited, message })).content.name),
  test_sampling: async (_given, { mcpReq }) => say((await mcpReq.requestSampling(sampled)).content.text),
  ask_roots: async (_given, { mcpReq }) => say((await mcpReq.send({ method: "roots/list" })).roots[0].uri),
  test_input_required_result_elicitation: ask("elicit", "user", elicited, (answer) => answer.content.name),
  test_input_required_result_sampling: ask("createMessage", "capital", sampled, (answer) => answer.content.text),
  test_input_required_result_list_roots: ask("listRoots", "roots", undefined, (answer) => answer.roots[0].uri),
  test_trigger_tool_change: async (_given, _context, { server }) => {
    await server.sendToolListChanged();
    return say("changed");
  },
  // Who listens in the modern era, the SDK knows.
  touch: async ({ uri }, { mcpReq }, { server, watching }) => {
    const told = mcpReq.envelope !== undefined || watching.has(uri);
    if (told) await server.sendResourceUpdated({ uri });
    return say(told ? "1 told" : "0 told");
  },
};

function createServer() {
  const capabilities = { tools: { listChanged: true }, resources: { subscribe: true }, logging: {} };
  const server = new Server({ name: "tools", version: "1" }, { capabilities });
  const session = { server, watching: new Set() };
  server.setRequestHandler("tools/list", () => ({
    tools: Object.keys(tools).map((name) => ({ name, description: name, inputSchema: { type: "object" } })),
  }));
  server.setRequestHandler("tools/call", async ({ params }, context) => {
    try {
      return await tools[params.name](params.arguments ?? {}, context, session);
    } catch (error) {
      return { ...say(error.message), isError: true };
    }
  });
  server.setRequestHandler("resources/list", () => ({ resources: [] }));
  server.setRequestHandler("resources/subscribe", ({ params }) => (session.watching.add(params.uri), {}));
  server.setRequestHandler("resources/unsubscribe", ({ params }) => (session.watching.delete(params.uri), {}));
  return server;
}

serveStdio(createServer);
