# SPDX-License-Identifier: Apache-2.0
"""`vllm serve` with its default settings as typed, and OpenAI's client."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from serving.conftest import PATHS

START_SECONDS = 300
"""What a start may take on a busy machine."""


class Server:
    """A `vllm serve` process; `log` is all it has said."""

    def __init__(self, directory: str, path: str, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.log = log
        command = Path(sys.executable).with_name("vllm")
        environment = os.environ | {
            "VLLM_METAL_USE_MLX": PATHS[path],
            "VLLM_LOGGING_LEVEL": "INFO",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        }
        with open(log, "w") as output:
            self.process = subprocess.Popen(
                [command, "serve", directory, "--port", self.url.rsplit(":", 1)[1]],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
        raise TimeoutError(self.log.read_text()[-4000:])


@pytest.fixture(scope="module")
def server(models, path, tmp_path_factory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    server = Server(models("qwen3").name_or_path, path, log)
    try:
        server.wait()
        yield server
    finally:
        server.process.terminate()
        server.process.wait(timeout=60)


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def model(client) -> str:
    return client.models.list().data[0].id


def complete(client, model, prompt="The cache", **options):
    options = {"temperature": 0, "max_tokens": 16} | options
    return client.completions.create(model=model, prompt=prompt, **options)


def test_completion(client, model):
    # as ids: several tokens here are parts of characters, which all read the same
    extra = {"return_tokens_as_token_ids": True}
    answer = complete(client, model, logprobs=3, extra_body=extra)
    choice = answer.choices[0]
    assert answer.usage.completion_tokens == 16
    assert choice.finish_reason == "length"
    assert "".join(choice.logprobs.tokens)
    assert all(len(top) >= 3 for top in choice.logprobs.top_logprobs)


def test_chat(client, model):
    messages = [{"role": "user", "content": "What is a list?"}]
    answer = client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=8, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.completion_tokens == 8
    assert len(answer.choices[0].logprobs.content) == 8


def test_streaming_gives_the_same_text(client, model):
    whole = complete(client, model).choices[0].text
    pieces = [chunk.choices[0].text for chunk in complete(client, model, stream=True)]
    assert "".join(pieces) == whole
    assert len(pieces) > 1

    messages = [{"role": "user", "content": "What is a list?"}]
    options = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 16}
    whole = client.chat.completions.create(**options).choices[0].message.content
    stream = client.chat.completions.create(**options, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole


def test_eight_at_once(client, model):
    prompts = [f"{'word ' * n}{n}" for n in range(8)]
    alone = [complete(client, model, prompt).choices[0].text for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda prompt: complete(client, model, prompt), prompts))
    assert [answer.choices[0].text for answer in together] == alone


def test_fields_of_vllm(client, model):
    extra = {"structured_outputs": {"choice": ["yes", "no"]}, "min_p": 0.1}
    answer = complete(client, model, temperature=0.8, seed=1, extra_body=extra)
    assert answer.choices[0].text in ("yes", "no")


BAD = {
    "temperature": {"temperature": -1},
    "top_p": {"top_p": 3},
    "max_tokens": {"max_tokens": -4},
    "too long": {"max_tokens": 100_000},
    "n": {"n": 0},
    "logit_bias": {"logit_bias": {"100000": 1}},
    "min_p": {"extra_body": {"min_p": 7}},
    "top_k": {"extra_body": {"top_k": -9}},
    "prompt": {"prompt": [100_000]},
    "regex": {"extra_body": {"structured_outputs": {"regex": "["}}},
    "thinking": {"extra_body": {"thinking_token_budget": 3}},
    "allowed": {"extra_body": {"allowed_token_ids": [100_000]}},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_parameters_get_a_4xx(name, client, model):
    with pytest.raises(openai.APIStatusError) as raised:
        complete(client, model, **BAD[name])
    assert 400 <= raised.value.status_code < 500, raised.value
    assert complete(client, model, max_tokens=2).usage.completion_tokens == 2


def test_bad_requests_do_not_disturb_the_others(client, model):
    expected = complete(client, model).choices[0].text

    def bad(_):
        with pytest.raises(openai.APIStatusError) as raised:
            complete(client, model, temperature=-1)
        return raised.value.status_code

    with ThreadPoolExecutor(8) as pool:
        codes = pool.map(bad, range(8))
        texts = [pool.submit(complete, client, model) for _ in range(8)]
        assert set(codes) == {400}
        assert {text.result().choices[0].text for text in texts} == {expected}


def test_other_errors(server, client, model):
    with pytest.raises(openai.NotFoundError):
        complete(client, "another-model")
    assert httpx.post(f"{server.url}/v1/completions", content=b"{").status_code == 400
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_log_says_each_thing_once(server):
    log = server.log.read_text()
    for line in ("metal: turned off", "memory budget", "metal: weights"):
        assert log.count(line) == 1, line
    assert "Unknown vLLM environment variable" not in log
    assert "Traceback" not in log


def test_stops_when_told(server):
    """Must stay last. SIGTERM ends the server and its engine, and leaves nothing behind."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert children
    server.process.terminate()
    assert server.process.wait(timeout=60) == 0
    assert psutil.wait_procs(children, timeout=60)[1] == []
