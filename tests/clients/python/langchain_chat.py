"""LangChain with its OpenAI chat model."""

from checks import KEY, LIMITS, MODEL, PROMPT, SCHEMA, TOOL, URL, arguments, run
from langchain_openai import ChatOpenAI

model = ChatOpenAI(base_url=f"{URL}/v1", api_key=KEY, model=MODEL, max_tokens=200, **LIMITS)


def chat():
    assert model.invoke(PROMPT).content


def stream():
    assert len(list(model.stream(PROMPT))) > 2


def tools():
    call = model.bind_tools([TOOL], tool_choice="required").invoke(PROMPT).tool_calls[0]
    assert call["name"] == "weather"
    return arguments(call["args"])


def structured():
    schema = {"title": "weather", "description": "The weather of a city", **SCHEMA}
    return arguments(model.with_structured_output(schema, method="json_schema").invoke(PROMPT))


run({"chat": chat, "stream": stream, "tools": tools, "structured": structured})
