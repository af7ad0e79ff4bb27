"""The openai package against kvmerge serve: BASE_URL and KEY from the command line."""

import asyncio
import sys

import openai
from pydantic import BaseModel

BASE_URL, KEY = sys.argv[1:]
client = openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)


def test_models():
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id
    return model.id


def test_chat(model):
    messages = [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    first = client.chat.completions.create(model=model, messages=messages, max_completion_tokens=24, temperature=0)
    answer = first.choices[0].message
    assert answer.role == "assistant" and answer.content, first
    assert first.choices[0].finish_reason in ("stop", "length"), first
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens, first
    messages += [
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": "And of Spain? Grüße 🌍"},
    ]
    second = client.chat.completions.create(model=model, messages=messages, max_completion_tokens=8, temperature=0)
    # All that was read and generated but for the last token, which no one has decoded yet.
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.total_tokens - 1, (first, second)


def test_stream(model):
    ask = {
        "model": model,
        "messages": [{"role": "user", "content": "Count from one to five."}],
        "max_tokens": 16,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**ask).choices[0].message.content
    text, usage, reasons = "", None, []
    for chunk in client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            reasons.append(chunk.choices[0].finish_reason)
        usage = chunk.usage or usage
    assert text == whole, (text, whole)
    assert reasons[-1] in ("stop", "length") and set(reasons[:-1]) == {None}, reasons
    assert usage.completion_tokens > 0, usage


def test_stream_of_logprobs(model):
    ask = {
        "model": model,
        "messages": [{"role": "user", "content": "Count from one to five."}],
        "max_tokens": 16,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.chat.completions.create(**ask).choices[0]
    text, tokens = "", []
    for chunk in client.chat.completions.create(**ask, stream=True):
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        tokens += choice.logprobs.content if choice.logprobs else []
        assert not choice.delta.content or "".join(t.token for t in tokens) == text, (text, tokens)
    assert tokens and all(len(t.top_logprobs) == 2 for t in tokens), tokens
    assert [t.token for t in tokens] == [t.token for t in whole.logprobs.content], (tokens, whole)


def test_completion(model):
    answer = client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=6, temperature=0, logprobs=2, stop=["\n"], seed=1
    )
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text, answer
    assert all(p <= 0 for p in logprobs.token_logprobs), answer
    assert all(len(top) == 2 for top in logprobs.top_logprobs), answer


class Colour(BaseModel):
    name: str
    warm: bool


def test_schema(model):
    answer = client.chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": "Describe the colour red as JSON."}],
        response_format=Colour,
        max_tokens=200,
        temperature=0,
    )
    assert isinstance(answer.choices[0].message.parsed, Colour), answer


def test_errors(model):
    wrong = openai.OpenAI(base_url=BASE_URL, api_key="wrong", max_retries=0)
    refused(openai.AuthenticationError, "invalid_api_key", lambda: wrong.models.list())
    refused(openai.NotFoundError, "not_found", lambda: client.embeddings.create(model=model, input="x"))

    def ask(**more):
        return lambda: client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "x"}], max_tokens=1, **more
        )

    refused(openai.BadRequestError, "unsupported_parameter", ask(n=2), "n")
    refused(openai.BadRequestError, "invalid_value", ask(temperature=-1), "temperature")
    refused(openai.BadRequestError, "unknown_parameter", ask(extra_body={"temprature": 1}), "temprature")
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    refused(openai.BadRequestError, "unsupported_parameter", ask(tools=[tool]), "tools")
    ask(user="me", metadata={"a": "b"}, store=False, service_tier="auto", n=1, tools=[], parallel_tool_calls=True)()
    too_long = {"model": model, "prompt": "word " * 10_000}
    refused(openai.BadRequestError, "context_length_exceeded", lambda: client.completions.create(**too_long))


def refused(error, code, call, param=None):
    try:
        call()
    except error as e:
        assert e.code == code and (param is None or e.param == param), (e.code, e.param, e)
        return
    raise AssertionError(f"{code} was expected")


def test_leaving(model):
    """A stream that is left early, and four at once after it."""

    async def run():
        many = openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)

        async def ask(number):
            prompt = [{"role": "user", "content": f"Say the number {number}."}]
            return await many.chat.completions.create(model=model, messages=prompt, max_tokens=4, temperature=0)

        prompt = [{"role": "user", "content": "Tell a long story."}]
        stream = await many.chat.completions.create(model=model, messages=prompt, max_tokens=2000, stream=True)
        async for _ in stream:
            break
        await stream.close()
        answers = await asyncio.wait_for(asyncio.gather(*(ask(i) for i in range(4))), 300)
        assert all(a.choices[0].message.content for a in answers), answers
        await many.close()

    asyncio.run(run())


name = test_models()
for test in (test_chat, test_stream, test_stream_of_logprobs, test_completion, test_schema, test_errors, test_leaving):
    test(name)
    print("ok:", test.__name__)
