"""LlamaIndex with its class for OpenAI-compatible servers."""

from typing import Literal

from checks import KEY, MODEL, PROMPT, URL, arguments, run
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, ConfigDict

llm = OpenAILike(
    api_base=f"{URL}/v1",
    api_key=KEY,
    model=MODEL,
    is_chat_model=True,
    is_function_calling_model=True,
    context_window=2048,
    max_tokens=200,
    # LlamaIndex asks for 0.1, with which the tiny model repeats one token until the answer is cut.
    temperature=1,
    max_retries=0,
    timeout=300,
)
MESSAGES = [ChatMessage(role="user", content=PROMPT)]


def chat():
    assert llm.chat(MESSAGES).message.content


def stream():
    assert len(list(llm.stream_chat(MESSAGES))) > 2


class Weather(BaseModel):
    """The schema that LlamaIndex makes of a function allows more members, with which random weights never end."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Berlin", "Paris"]
    warm: bool


def weather(city: str, warm: bool) -> str:
    """The weather of a city"""
    return f"{city} {warm}"


def tools():
    tool = FunctionTool.from_defaults(fn=weather, fn_schema=Weather)
    answer = llm.chat_with_tools([tool], user_msg=PROMPT, tool_required=True)
    call = llm.get_tool_calls_from_response(answer)[0]
    return arguments(call.tool_kwargs)


run({"chat": chat, "stream": stream, "tools": tools})
