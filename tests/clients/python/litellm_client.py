"""LiteLLM as a library; its proxy sends the same requests."""

import litellm
from checks import KEY, MODEL, PROMPT, SCHEMA, TOOL, URL, arguments, run

SETTINGS = {
    "model": f"openai/{MODEL}",
    "api_base": f"{URL}/v1",
    "api_key": KEY,
    "messages": [{"role": "user", "content": PROMPT}],
    "num_retries": 0,
    "timeout": 300,
}


def chat():
    assert litellm.completion(**SETTINGS, max_tokens=8).choices[0].message.content


def stream():
    assert len(list(litellm.completion(**SETTINGS, max_tokens=8, stream=True))) > 2


def tools():
    answer = litellm.completion(**SETTINGS, tools=[TOOL], tool_choice="required", max_tokens=200)
    return arguments(answer.choices[0].message.tool_calls[0].function.arguments)


def structured():
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
    answer = litellm.completion(**SETTINGS, response_format=form, max_tokens=200)
    return arguments(answer.choices[0].message.content)


run({"chat": chat, "stream": stream, "tools": tools, "structured": structured})
