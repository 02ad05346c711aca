"""The enumerable model behind the interfaces of vLLM and of servers: what an engine sees, with exact probabilities."""

import importlib.machinery
import json
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np


class ServedOracle:
    """Draws token by token from a table, each request from its own seed alone."""

    def __init__(self, table):
        self.table, self.space = table, table.space

    def draw(self, prompt, seed, temperature, limit):
        """Token ids and log-probabilities of one completion."""
        rng, node, letters = np.random.default_rng(seed), 0, []
        ids, log_probs = [], []
        while len(ids) < limit:
            logits = self.table.logits[prompt, node] / temperature
            log_p = logits - np.logaddexp.reduce(logits)
            token = int(rng.choice(len(log_p), p=np.exp(log_p)))
            ids.append(token)
            log_probs.append(float(log_p[token]))
            if token == 0:
                break
            letters.append(token)
            if len(letters) < self.space.length_limit:
                node = self.space.number([*letters, 0])
        return ids, log_probs


def install_vllm(monkeypatch, table):
    """Put a module ``vllm`` in place whose LLM is the table; its signatures are those of vLLM 0.22 to 0.31.

    Like the real ones, SamplingParams knows its fields and no others, a token's dictionary holds the token that was
    drawn, and raw log-probabilities are those before the temperature.
    """
    made = []

    class SamplingParams:
        defaults = {
            "n": 1, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "temperature": 1.0,
            "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": None, "stop_token_ids": None, "max_tokens": 16,
            "min_tokens": 0, "logprobs": None, "ignore_eos": False, "detokenize": True,
        }  # fmt: skip

        def __init__(self, **fields):
            if unknown := fields.keys() - self.defaults.keys():
                raise TypeError(f"Unexpected keyword argument {unknown}")
            self.__dict__ |= self.defaults | fields

    class LLM:
        def __init__(
            self, model, *, dtype="auto", seed=0, generation_config="auto", logprobs_mode="raw_logprobs", **more
        ):
            self.arguments = {"model": model, "dtype": dtype, "generation_config": generation_config, **more}
            self.oracle, self.mode, self.seen, self.ended = ServedOracle(table), logprobs_mode, [], False
            self.llm_engine = types.SimpleNamespace(engine_core=types.SimpleNamespace(shutdown=self.end))
            assert all(llm.ended for llm in made), "two models in memory at once"
            made.append(self)

        def end(self):
            self.ended = True

        def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
            self.seen += sampling_params
            pairs = zip(prompts, sampling_params, strict=True)
            return [types.SimpleNamespace(outputs=[self.one(p["prompt_token_ids"], s)]) for p, s in pairs]

        def one(self, prompt_ids, params):
            neutral = {"presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1, "top_p": 1, "min_p": 0}
            assert {name: getattr(params, name) for name in neutral} == neutral and params.top_k in (0, -1)
            ids, log_probs = self.oracle.draw(
                prompt_ids[-1] - table.space.vocabulary, params.seed, params.temperature, params.max_tokens
            )
            if self.mode == "raw_logprobs":
                log_probs = [0.0 if params.temperature != 1 else value for value in log_probs]
            steps = [{t: types.SimpleNamespace(logprob=v, rank=1)} for t, v in zip(ids, log_probs, strict=True)]
            return types.SimpleNamespace(
                token_ids=ids,
                logprobs=None if params.logprobs is None else steps,
                cumulative_logprob=sum(log_probs),
                finish_reason="length" if ids[-1] else "stop",
            )

    module = types.ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    return made


class OracleServer:
    """``/v1/completions`` on an ephemeral port of 127.0.0.1, replying as one of the known servers does.

    Dialects: ``vllm`` (token_ids beside log-probabilities), ``older vllm`` (tokens of the form token_id:17),
    ``llama.cpp`` (a list of tokens with ids, and the settings used), ``pieces`` (tokens as text, the stop token left
    out, as llama-cpp-python does), ``text`` (nothing but text). ``change(reply)`` alters a reply before it is sent.
    """

    def __init__(self, table, dialect, change=lambda reply: reply):
        self.oracle, self.dialect, self.change, self.requests = ServedOracle(table), dialect, change, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body)
                data = json.dumps(outer.change(outer.reply(body))).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"openai:http://127.0.0.1:{self.http.server_port}/v1#oracle"

    def __enter__(self):
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def reply(self, body):
        last = body["prompt"][-1]
        prompt = int(last) if isinstance(last, str) else last - self.oracle.space.vocabulary
        ids, log_probs = self.oracle.draw(prompt, body["seed"], body["temperature"], body["max_tokens"])
        pieces = [" abcdefghij"[token] if token else "" for token in ids]
        choice = {"text": "".join(pieces), "index": 0, "finish_reason": "length" if ids[-1] else "stop"}
        whole = {"object": "text_completion", "model": body["model"], "choices": [choice]}
        if self.dialect == "vllm":
            choice |= {"logprobs": {"tokens": pieces, "token_logprobs": log_probs}, "token_ids": ids}
        elif self.dialect == "older vllm":
            tokens = [f"token_id:{token}" for token in ids]
            choice |= {"logprobs": {"tokens": tokens, "token_logprobs": log_probs}}
        elif self.dialect == "llama.cpp":
            name, values = ("prob", np.exp(log_probs)) if body["post_sampling_probs"] else ("logprob", log_probs)
            content = [{"id": t, "token": p, name: float(v)} for t, p, v in zip(ids, pieces, values, strict=True)]
            used = {
                name: body[name] for name in ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "mirostat")
            }
            choice |= {"logprobs": {"content": content}}
            whole |= {"__verbose": {"generation_settings": used}}
        elif self.dialect == "pieces":
            kept = [i for i, token in enumerate(ids) if token]
            choice |= {
                "logprobs": {"tokens": [pieces[i] for i in kept], "token_logprobs": [log_probs[i] for i in kept]}
            }
        return whole
