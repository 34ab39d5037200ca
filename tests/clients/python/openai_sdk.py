"""The OpenAI SDK for Python."""

from checks import KEY, LIMITS, MODEL, PROMPT, SCHEMA, TOOL, URL, arguments, run
from openai import NotFoundError, OpenAI

client = OpenAI(base_url=f"{URL}/v1", api_key=KEY, **LIMITS)
MESSAGES = [{"role": "user", "content": PROMPT}]


def chat():
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens


def stream():
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    )
    assert len(chunks) > 2
    assert chunks[-1].usage.completion_tokens == 8


def tools():
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, tools=[TOOL], tool_choice="required", max_tokens=200
    )
    call = answer.choices[0].message.tool_calls[0].function
    assert call.name == "weather"
    return arguments(call.arguments)


def structured():
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, response_format=form, max_tokens=200)
    return arguments(answer.choices[0].message.content)


def models():
    assert MODEL in [model.id for model in client.models.list()]


def unknown_model():
    try:
        client.chat.completions.create(model="no-such-model", messages=MESSAGES)
    except NotFoundError as error:
        return error.code
    raise AssertionError("an unknown model was answered")


def responses():
    answer = client.responses.create(model=MODEL, input=PROMPT, max_output_tokens=8, store=False)
    assert answer.output_text


run(
    {
        "chat": chat,
        "stream": stream,
        "tools": tools,
        "structured": structured,
        "models": models,
        "unknown model": unknown_model,
        "responses": responses,
    }
)
