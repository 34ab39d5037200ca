// What every client does against the gateway, each check printed as one line of JSON. See python/checks.py.
export const URL = process.env.QWEN_CLIENT_URL;
export const KEY = process.env.QWEN_CLIENT_KEY;
export const MODEL = process.env.QWEN_CLIENT_MODEL;
// A wrong answer must not be repeated, unless a test is about the client's own patience.
export const LIMITS = process.env.QWEN_CLIENT_DEFAULTS ? {} : { maxRetries: 0, timeout: 300_000 };
export const PROMPT = "Is it warm in Berlin?";
// The model of the test bed has random weights. So the schema leaves it only a few answers, all of them short.
export const SCHEMA = {
  type: "object",
  properties: { city: { type: "string", enum: ["Berlin", "Paris"] }, warm: { type: "boolean" } },
  required: ["city", "warm"],
  additionalProperties: false,
};

export function check(condition, message) {
  if (!condition) throw new Error(message);
}

export function checkArguments(given) {
  const content = typeof given === "string" ? JSON.parse(given) : given;
  check(["Berlin", "Paris"].includes(content.city), `city is ${content.city}`);
  check(typeof content.warm === "boolean", `warm is ${content.warm}`);
  return JSON.stringify(content);
}

export async function run(checks) {
  for (const [name, body] of Object.entries(checks)) {
    try {
      const note = await body();
      console.log(JSON.stringify({ check: name, ok: true, note: String(note ?? "").slice(0, 200) }));
    } catch (error) {
      console.error(error);
      console.log(JSON.stringify({ check: name, ok: false, note: String(error).slice(0, 400) }));
    }
  }
}
