// The Anthropic SDK for Node, with its own header x-api-key.
import Anthropic from "@anthropic-ai/sdk";
import { KEY, MODEL, PROMPT, SCHEMA, URL, check, checkArguments, run } from "./checks.mjs";

const client = new Anthropic({ baseURL: URL, apiKey: KEY, maxRetries: 0, timeout: 300_000 });
const messages = [{ role: "user", content: PROMPT }];

await run({
  chat: async () => {
    const answer = await client.messages.create({ model: MODEL, messages, max_tokens: 8 });
    check(answer.content[0].text, "no text");
  },
  stream: async () => {
    let text = "";
    const stream = client.messages.stream({ model: MODEL, messages, max_tokens: 8 }).on("text", (part) => { text += part; });
    await stream.finalMessage();
    check(text, "no text");
  },
  tools: async () => {
    const tools = [{ name: "weather", description: "The weather", input_schema: SCHEMA }];
    const answer = await client.messages.create({
      model: MODEL, messages, tools, tool_choice: { type: "any" }, max_tokens: 200,
    });
    return checkArguments(answer.content.find((block) => block.type === "tool_use").input);
  },
});
