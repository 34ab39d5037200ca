"""The Anthropic SDK for Python, with its own header `x-api-key`."""

from anthropic import Anthropic
from checks import KEY, MODEL, PROMPT, SCHEMA, URL, arguments, run

client = Anthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=300)
MESSAGES = [{"role": "user", "content": PROMPT}]


def chat():
    answer = client.messages.create(model=MODEL, messages=MESSAGES, max_tokens=8)
    assert answer.content[0].text
    assert answer.usage.output_tokens


def stream():
    with client.messages.stream(model=MODEL, messages=MESSAGES, max_tokens=8) as events:
        assert "".join(events.text_stream)


def tools():
    tool = {"name": "weather", "description": "The weather of a city", "input_schema": SCHEMA}
    answer = client.messages.create(
        model=MODEL, messages=MESSAGES, tools=[tool], tool_choice={"type": "any"}, max_tokens=200
    )
    call = next(block for block in answer.content if block.type == "tool_use")
    assert call.name == "weather"
    return arguments(call.input)


run({"chat": chat, "stream": stream, "tools": tools})
