"""The client against a real server: what comes back whole, what is tried again, what is refused."""

import threading
import time

import pytest
from openai_server import OpenAIServer

from disa.errors import DisaError
from disa.lm.openai_client import Endpoint, OpenAIClient, check_request

# Long enough for a local answer on a busy machine, short enough to be waited for.
TIMEOUT = 2.0


def client(server, **settings):
    endpoint = Endpoint(server.url, "tiny")
    return OpenAIClient(endpoint, **{"timeout": TIMEOUT, "attempts": 3, "backoff": 0.001} | settings)


def echo(path, body):
    return body["messages"][-1]["content"] if "messages" in body else f"{body['prompt']}"


def ask(client, text="hello"):
    return client.chat([{"role": "user", "content": text}], max_tokens=5)


@pytest.mark.parametrize("stream", [False, True])
def test_chat_and_completions_return_text_usage_and_finish_reason(stream):
    with OpenAIServer(lambda path, body: (echo(path, body), "length")) as server:
        chat = ask(client(server, stream=stream), "grüße, 世界")
        text = client(server, stream=stream).complete([1, 2], temperature=0.5)
    assert (chat.text, chat.finish_reason, chat.completion_tokens, chat.prompt_tokens) == (
        "grüße, 世界",
        "length",
        9,
        7,
    )
    assert text.text == "[1, 2]"
    assert server.requests[0]["max_tokens"] == 5
    assert server.requests[1]["temperature"] == 0.5
    assert chat.model == ("tiny" if stream else "served-tiny")


@pytest.mark.parametrize(
    "failure", [429, 500, 503, "time-out", "malformed", "no completion", "cut body", "cut stream", "hang up", "drip"]
)
def test_what_another_try_may_cure_is_tried_again(failure):
    stream = failure == "cut stream"
    timeout = 0.3 if failure in ("time-out", "drip") else TIMEOUT
    with OpenAIServer(echo, [failure]) as server:
        ours = client(server, stream=stream, timeout=timeout)
        assert ask(ours).text == "hello"
    assert len(server.requests) == 2
    assert ours.retries == 1


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (500, "answered 500 .*scripted 500"),
        ("malformed", "not valid JSON"),
        ("no completion", "no completion"),
        ("cut body", "cut"),
        ("cut stream", r"ended without \[DONE\]"),
        ("stream error", "out of memory"),
        ("time-out", "time-out after 0.3 s"),
        ("drip", "time-out after 0.3 s"),
    ],
)
def test_tries_are_bounded_and_the_last_failure_is_named(failure, said):
    timeout = 0.3 if failure in ("time-out", "drip") else TIMEOUT
    with OpenAIServer(echo, [failure] * 9) as server:
        with pytest.raises(DisaError, match=f"no usable reply in 3 tries, the last: .*{said}"):
            ask(client(server, stream="stream" in str(failure), timeout=timeout))
    assert len(server.requests) == 3


def test_a_server_that_is_not_there_is_named():
    with OpenAIServer(echo) as server:
        pass
    with pytest.raises(DisaError, match=rf"{server.url}/chat/completions: no usable reply .*ConnectionRefused"):
        ask(client(server))


@pytest.mark.parametrize(("status", "fix"), [(400, "the prompt"), (401, "OPENAI_API_KEY"), (404, "address"), (307, "")])
def test_what_only_the_user_can_fix_is_refused_at_once(status, fix):
    with OpenAIServer(echo, [status]) as server:
        with pytest.raises(DisaError, match=f"answered {status}.*Fix: .*{fix}"):
            ask(client(server))
    assert len(server.requests) == 1


def test_the_servers_pause_is_respected():
    with OpenAIServer(echo, [429]) as server:
        started = time.monotonic()
        ask(client(server, backoff=30.0))
    # Retry-After is 0 in the script; the client's own pause would be at least 15 s.
    assert time.monotonic() - started < 10


def test_map_keeps_the_order_and_its_bound_on_concurrency():
    busy, most, lock = 0, 0, threading.Lock()

    def slow(path, body):
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.02 if body["messages"][0]["content"] == "0" else 0.005)
        with lock:
            busy -= 1
        return echo(path, body)

    with OpenAIServer(slow, [500, 429]) as server:
        ours = client(server, concurrency=3)
        replies = list(ours.map(lambda i: ask(ours, str(i)).text, range(20)))
    assert replies == [str(i) for i in range(20)]
    assert 1 < most <= 3


def test_an_error_in_map_ends_it_without_asking_the_rest():
    with OpenAIServer(echo, [400]) as server:
        ours = client(server, concurrency=1)
        with pytest.raises(DisaError, match="scripted 400"):
            list(ours.map(lambda i: ask(ours, str(i)), range(50)))
    # One more may have been under way when the error was seen.
    assert len(server.requests) <= 2


def test_the_key_travels_in_the_header_and_never_in_a_message(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-the-test\n")
    with OpenAIServer(echo, [401]) as server:
        with pytest.raises(DisaError) as error:
            ask(client(server))
    assert server.headers[0]["Authorization"] == "Bearer secret-of-the-test"
    assert "secret" not in str(error.value)
    monkeypatch.setenv("OPENAI_API_KEY", "secret\nof the test")
    with pytest.raises(DisaError) as error:
        ask(client(server))
    assert "secret" not in str(error.value)


def test_endpoints_are_parsed_strictly():
    assert Endpoint.parse("openai:https://host/v1/#org/model") == Endpoint("https://host/v1", "org/model")
    for text in (
        "openai:host:1/v1#m",
        "openai:http://host/v1",
        "openai:ftp://host/v1#m",
        "openai:http://u:p@host/v1#m",
    ):
        with pytest.raises(DisaError) as error:
            Endpoint.parse(text)
        assert ":p@" not in str(error.value)


def test_further_request_fields_must_be_an_object():
    assert check_request(None) == {}
    assert check_request('{"top_k": 5}') == {"top_k": 5}
    for text in ("5", "{", "null"):
        with pytest.raises(DisaError, match="JSON object"):
            check_request(text)
