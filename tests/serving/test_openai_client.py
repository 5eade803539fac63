"""The official client, as users call it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from chat_requests import asked, data_url

pytest.importorskip("aiohttp")
openai = pytest.importorskip("openai")

KEY = "sk-test"


def client_of(endpoint, key: str = KEY):
    return openai.OpenAI(base_url=endpoint.url, api_key=key, max_retries=0, timeout=60)


def test_it_lists_the_model(serving):
    with serving(key=KEY) as endpoint:
        assert [model.id for model in client_of(endpoint).models.list()] == ["tiny"]


@pytest.mark.parametrize("image", [None, data_url()])
def test_text_and_images_streamed_and_not(serving, image):
    with serving(key=KEY) as endpoint:
        client = client_of(endpoint)
        body = asked(image=image)
        whole = client.chat.completions.create(**body)
        assert whole.choices[0].finish_reason in ("stop", "length")
        assert whole.usage.total_tokens > whole.usage.prompt_tokens
        pieces = client.chat.completions.create(**body, stream=True)
        said = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        assert said == whole.choices[0].message.content
        with client.chat.completions.stream(**body) as events:
            deltas = [event.delta for event in events if event.type == "content.delta"]
        assert "".join(deltas) == said


def test_a_conversation_goes_on_with_the_answer_that_came(serving):
    with serving(key=KEY) as endpoint:
        client = client_of(endpoint)
        body = asked(image=data_url())
        first = client.chat.completions.create(**body).choices[0].message
        more = [*body["messages"], first, {"role": "user", "content": "Sure?"}]
        second = client.chat.completions.create(**{**body, "messages": more})
        assert second.choices[0].message.role == "assistant"


def test_fifty_at_once(serving):
    with serving(key=KEY) as endpoint:
        client = client_of(endpoint)
        bodies = [asked("What? " * (1 + n % 3), data_url(place=n % 9)) for n in range(50)]
        with ThreadPoolExecutor(50) as pool:
            found = list(pool.map(lambda body: client.chat.completions.create(**body), bodies))
        texts = [answer.choices[0].message.content for answer in found]
        again = client.chat.completions.create(**bodies[7]).choices[0].message.content
        assert texts[7] == again


def test_its_errors_are_told_apart(serving):
    with serving(key=KEY, requests=0) as endpoint, pytest.raises(openai.RateLimitError):
        client_of(endpoint).chat.completions.create(**asked())
    with serving(key=KEY) as endpoint:
        with pytest.raises(openai.AuthenticationError):
            client_of(endpoint, "wrong").chat.completions.create(**asked())
        with pytest.raises(openai.NotFoundError, match="there is 'tiny'"):
            client_of(endpoint).chat.completions.create(**asked(model="gpt-4o"))
        body = asked(response_format={"type": "json_object"})
        with pytest.raises(openai.BadRequestError, match="response_format"):
            client_of(endpoint).chat.completions.create(**body)
        with pytest.raises(openai.BadRequestError, match="image_url|data:"):
            client_of(endpoint).chat.completions.create(**asked(image="file:///etc/passwd"))
