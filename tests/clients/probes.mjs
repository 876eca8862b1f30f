// What each client in JavaScript is asked to do: one JSON object says what came of it, and the test judges that.

import { setTimeout as sleep } from "node:timers/promises";

// An answer that does not come is a result as well.
const PATIENCE = 20_000;

export async function until(happened) {
  while (!happened()) await sleep(10);
  return true;
}

// Runs what is asked one after the other, and prints what each has given.
export async function report(asks) {
  const found = {};
  for (const [name, ask] of Object.entries(asks)) {
    const late = sleep(PATIENCE).then(() => {
      throw new Error("no answer");
    });
    found[name] = await Promise.race([ask(), late]).catch((error) => `failed: ${error.message}`);
  }
  process.stdout.write(JSON.stringify(found), () => process.exit(0));
}

// The answers to what a server asks its client.
export const answers = {
  elicitation: (params) => {
    const [field] = Object.keys(params.requestedSchema.properties);
    return { action: "accept", content: { [field]: "Ada" } };
  },
  sampling: () => ({ role: "assistant", model: "none", content: { type: "text", text: "Paris" } }),
  roots: () => ({ roots: [{ uri: "file:///somewhere", name: "somewhere" }] }),
};

// What is the same for both SDKs, whose methods have the same names.
export function common(client, modern, told) {
  const text = async (name, given = {}, options = {}, _meta = undefined) => {
    const params = { name, arguments: given, _meta };
    const result = await client.callTool(params, ...(client.oldSdk ? [undefined, options] : [options]));
    return result.content[0].text;
  };
  const prefix = modern ? "test_input_required_result_" : "test_";
  const uri = "test://watched-resource";
  return {
    tools: async () => (await client.listTools()).tools.length,
    text: () => text("test_simple_text"),
    progress: async () => {
      const steps = [];
      await text("test_tool_with_progress", {}, { onprogress: ({ progress }) => steps.push(progress) });
      await until(() => steps.length === 3);
      return steps;
    },
    logs: async () => {
      if (!modern) await client.setLoggingLevel("debug");
      await text("test_tool_with_logging", {}, {}, modern ? { "io.modelcontextprotocol/logLevel": "debug" } : undefined);
      return until(() => told.filter((what) => what === "message").length === 3);
    },
    updates: async () => {
      if (modern) {
        const subscription = await client.listen({ toolsListChanged: true });
        await text("test_trigger_tool_change");
        await until(() => told.includes("tools"));
        await subscription.close();
        return "ToolsListChanged";
      }
      await client.subscribeResource({ uri });
      await text("touch", { uri });
      await until(() => told.includes("updated"));
      await client.unsubscribeResource({ uri });
      return "ResourceUpdated";
    },
    elicitation: () => text(`${prefix}elicitation`, modern ? {} : { message: "who?" }),
    sampling: () => text(`${prefix}sampling`, modern ? {} : { prompt: "which?" }),
    roots: () => text(modern ? `${prefix}list_roots` : "ask_roots"),
    cancel: async () => {
      const stop = new AbortController();
      const { transport } = client;
      const send = transport.send.bind(transport);
      let told = [];
      transport.send = (...given) => {
        const sent = send(...given);
        told.push(sent);
        return sent;
      };
      setTimeout(() => {
        told = [];
        stop.abort("enough");
      }, 500);
      const why = await text("wait", { seconds: 600 }, { signal: stop.signal }).catch((error) => error.constructor.name);
      // The SDK does not wait until it has told that it gave up; whoever ends before that has told nobody.
      await Promise.allSettled(told);
      await client.listTools();
      return why;
    },
  };
}
