"""A real HTTP server that speaks the OpenAI protocol, with failures on demand."""

import contextlib
import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class OpenAIServer:
    """Answers ``/v1/chat/completions`` and ``/v1/completions`` on an ephemeral port of 127.0.0.1.

    ``answer(path, body)`` gives a completion's text, or (text, finish reason). ``failures`` are used up first, one a
    request: 429, 500, ``time-out``, ``malformed``, ``no completion``, ``cut body``, ``cut stream``, ``hang up``,
    ``drip``, ``stream error``, or any other status.
    """

    def __init__(self, answer, failures=()):
        self.answer, self.failures = answer, deque(failures)
        self.requests, self.headers = [], []
        self.released = threading.Event()  # lets hanging answers go when the test is over
        self.lock = threading.Lock()
        outer = self

        class Handler(_Handler):
            server_state = outer

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self):
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.released.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.lock:
            state.requests.append(body)
            state.headers.append(dict(self.headers))
            failure = state.failures.popleft() if state.failures else None
        self.close_connection = True
        # A client that gave up waiting has closed the connection.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if failure is None:
                self.reply(body)
            elif isinstance(failure, int):
                more = {"Retry-After": "0"} if failure == 429 else {}
                more |= {"Location": "/v1/elsewhere"} if 300 <= failure < 400 else {}
                self.send(failure, json.dumps({"error": {"message": f"scripted {failure}"}}).encode(), **more)
            else:
                getattr(self, failure.replace(" ", "_").replace("-", "_"))()

    def reply(self, body):
        answer = self.server_state.answer(self.path, body)
        text, finish = answer if isinstance(answer, tuple) else (answer, "stop")
        chat = self.path.endswith("/chat/completions")
        usage = {"prompt_tokens": 7, "completion_tokens": len(text)}
        if body.get("stream"):
            # Pieces of three characters, as UTF-8 that read boundaries may split.
            pieces = [text[i : i + 3] for i in range(0, len(text), 3)]
            events = [{"choices": [{"delta": {"content": p}} if chat else {"text": p}]} for p in pieces]
            end = {"delta": {}, "finish_reason": finish} if chat else {"text": "", "finish_reason": finish}
            events += [{"choices": [end]}, {"choices": [], "usage": usage}]
            lines = [f"data: {json.dumps(e, ensure_ascii=False)}\n\n" for e in events] + [": a comment\n\n"]
            self.send(200, ("".join(lines) + "data: [DONE]\n\n").encode(), **{"Content-Type": "text/event-stream"})
        else:
            choice = {"message": {"content": text}} if chat else {"text": text}
            whole = {
                "model": f"served-{body['model']}",
                "choices": [choice | {"finish_reason": finish}],
                "usage": usage,
            }
            self.send(200, json.dumps(whole).encode())

    def send(self, status, data, length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def time_out(self):
        self.server_state.released.wait(20)

    def malformed(self):
        self.send(200, b'{"choices": [{"message": {"content": "hal')

    def no_completion(self):
        self.send(200, b'{"choices": []}')

    def cut_body(self):
        self.send(200, b'{"choices": [{"message": {"content": "half"}}]}', length=1000)

    def cut_stream(self):
        event = json.dumps({"choices": [{"delta": {"content": "half of an ans"}}]})
        self.send(200, f"data: {event}\n\n".encode(), **{"Content-Type": "text/event-stream"})

    def stream_error(self):
        self.send(200, b'data: {"error": {"message": "out of memory"}}\n\n', **{"Content-Type": "text/event-stream"})

    def hang_up(self):
        self.connection.close()

    def drip(self):
        # Every byte comes in time, the whole would take minutes: only a limit on the whole reply ends it.
        self.send(200, b"", length=100_000)
        while not self.server_state.released.wait(0.05):
            self.wfile.write(b" ")
