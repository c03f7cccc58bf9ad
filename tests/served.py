"""A small server that speaks OpenAI's /completions for a transformers model, with the faults that real servers have."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch


class Served:
    """What a server does. echo: of a prompt's log-probabilities, right, late by one token (llama-cpp-python's), or none.

    strict: it refuses what is not OpenAI's; else it has a penalty unless told otherwise. cut: the most tokens that it reads of a
    prompt. fails: how many long completions fail with status 500 first. said: what it says then. busy: it answers 503.
    """

    def __init__(
        self, model, tokenizer, *, ids=True, echo="right", cut=None, usage=True, strict=False, names=("tiny",)
    ):
        self.model, self.tokenizer, self.names = model, tokenizer, names
        self.strict = strict
        self.ids, self.echo, self.cut, self.usage = ids, echo, cut, usage
        self.fails, self.busy, self.said, self.keys, self.asked = 0, False, "out of order", set(), 0
        self.lock = threading.Lock()

    def complete(self, asked):
        prompt = asked["prompt"]
        if not isinstance(prompt, str) and not self.ids:
            return 422, {"detail": "prompt must be a string"}
        penalty = asked.get("repeat_penalty", 1.0 if self.strict else 4.0)
        if self.strict and {"repeat_penalty", "repetition_penalty"} & {*asked}:
            return 400, {"error": {"message": "unknown field"}}
        if asked["model"] not in self.names:
            return 404, {"error": {"message": f"the model {asked['model']} does not exist"}}
        if self.busy and asked.get("echo"):
            return 503, {"error": {"message": "loading"}}
        if self.fails and len(prompt) > 60:
            self.fails -= 1
            return 500, {"error": {"message": self.said}}
        ids = (self.tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt)[-(self.cut or 10**9) :]
        written = self.write(ids, asked["max_tokens"], penalty)
        text = self.tokenizer.decode(written)
        told = None
        if asked.get("echo") and self.echo != "none":
            text = self.tokenizer.decode([*ids, *written])
            told = self.told([*ids, *written], asked["logprobs"])
        choice = {"index": 0, "text": text, "logprobs": told, "finish_reason": "length"}
        count = {"prompt_tokens": len(ids), "completion_tokens": len(written), "total_tokens": len(ids) + len(written)}
        whole = {"id": "1", "object": "text_completion", "created": 0, "model": asked["model"], "choices": [choice]}
        return 200, whole | ({"usage": count} if self.usage else {})

    @torch.inference_mode()
    def write(self, ids, count, penalty):
        given = torch.tensor([ids])
        out = self.model.generate(
            given, max_new_tokens=count, min_new_tokens=count, do_sample=False, repetition_penalty=penalty
        )
        return out[0, len(ids) :].tolist()

    @torch.inference_mode()
    def told(self, ids, top):
        rows = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        rows = rows if self.echo == "late" else torch.cat([rows[:1], rows[:-1]])
        words = [self.tokenizer.decode([token]) for token in ids]
        best = [rows[i].topk(top) for i in range(len(ids))]
        tops = [
            {
                self.tokenizer.decode([token]): value
                for value, token in zip(b.values.tolist(), b.indices.tolist(), strict=True)
            }
            | {words[i]: float(rows[i, ids[i]])}
            for i, b in enumerate(best)
        ]
        probabilities = [float(rows[i, token]) for i, token in enumerate(ids)]
        return {"tokens": words, "token_logprobs": [None, *probabilities[1:]], "top_logprobs": [None, *tops[1:]]}


@contextmanager
def serving(served):
    """Yield the URL of a server on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status, body):
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self):
            self.answer(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in served.names]})

        def do_POST(self):
            if self.path != "/v1/completions":
                self.answer(404, {"detail": "Not Found"})
                return
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with served.lock:
                served.asked += 1
                served.keys.add(self.headers.get("authorization"))
                status, answer = served.complete(body)
            self.answer(status, answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
