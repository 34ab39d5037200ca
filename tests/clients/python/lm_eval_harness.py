"""lm-eval's own model class for chat completions. No data set: the requests are what counts."""

from types import SimpleNamespace

from checks import KEY, MODEL, PROMPT, URL, run
from lm_eval.models.openai_completions import LocalChatCompletion


def chat():
    import os

    os.environ["OPENAI_API_KEY"] = KEY
    model = LocalChatCompletion(
        model=MODEL, base_url=f"{URL}/v1/chat/completions", tokenizer_backend=None, num_concurrent=1, max_retries=1
    )
    prompt = model.apply_chat_template([{"role": "user", "content": PROMPT}])
    requests = [SimpleNamespace(args=(prompt, {"until": [], "max_gen_toks": 8}))]
    (answer,) = model.generate_until(requests, disable_tqdm=True)
    assert answer


run({"chat": chat})
