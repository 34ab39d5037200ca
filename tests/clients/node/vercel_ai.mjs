// The AI SDK of Vercel with its provider for OpenAI-compatible servers.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, streamText, tool } from "ai";
import { KEY, MODEL, PROMPT, SCHEMA, URL, check, checkArguments, run } from "./checks.mjs";

const provider = createOpenAICompatible({ name: "qwen", baseURL: `${URL}/v1`, apiKey: KEY, supportsStructuredOutputs: true });
const model = provider(MODEL);
const settings = { model, prompt: PROMPT, maxRetries: 0 };

await run({
  chat: async () => {
    const { text } = await generateText({ ...settings, maxOutputTokens: 8 });
    check(text, "no text");
  },
  stream: async () => {
    let parts = 0;
    for await (const _ of streamText({ ...settings, maxOutputTokens: 8 }).textStream) parts += 1;
    check(parts > 1, `${parts} parts`);
  },
  tools: async () => {
    const weather = tool({ description: "The weather", inputSchema: jsonSchema(SCHEMA) });
    const answer = await generateText({ ...settings, tools: { weather }, toolChoice: "required", maxOutputTokens: 200 });
    return checkArguments(answer.toolCalls[0].input);
  },
});
