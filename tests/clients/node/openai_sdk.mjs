// The OpenAI SDK for Node.
import OpenAI from "openai";
import { KEY, LIMITS, MODEL, PROMPT, SCHEMA, URL, check, checkArguments, run } from "./checks.mjs";

const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: KEY, ...LIMITS });
const messages = [{ role: "user", content: PROMPT }];

await run({
  chat: async () => {
    const answer = await client.chat.completions.create({ model: MODEL, messages, max_tokens: 8 });
    check(answer.choices[0].message.content, "no content");
  },
  stream: async () => {
    let chunks = 0;
    const stream = await client.chat.completions.create({ model: MODEL, messages, max_tokens: 8, stream: true });
    for await (const _ of stream) chunks += 1;
    check(chunks > 2, `${chunks} chunks`);
  },
  tools: async () => {
    const tool = { type: "function", function: { name: "weather", description: "The weather", parameters: SCHEMA } };
    const answer = await client.chat.completions.create({
      model: MODEL, messages, tools: [tool], tool_choice: "required", max_tokens: 200,
    });
    return checkArguments(answer.choices[0].message.tool_calls[0].function.arguments);
  },
  structured: async () => {
    const response_format = { type: "json_schema", json_schema: { name: "weather", schema: SCHEMA, strict: true } };
    const answer = await client.chat.completions.create({ model: MODEL, messages, response_format, max_tokens: 200 });
    return checkArguments(answer.choices[0].message.content);
  },
});
