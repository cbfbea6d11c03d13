"""The embedding server that most teams write: FastAPI over sentence-transformers, in OpenAI's shape.

    python st_server.py MODEL_FOLDER PORT THREADS

MODEL_FOLDER is sentence-transformers' (model.safetensors and modules.json). It prints `ready` when it listens.
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class Request(BaseModel):
    input: str | list[str]
    model: str = "all-MiniLM-L6-v2"


def make(folder):
    model = SentenceTransformer(folder, device="cpu")
    app = FastAPI()

    # No `async`: FastAPI runs it on a thread of its pool, so that the server answers meanwhile.
    @app.post("/v1/embeddings")
    def embeddings(request: Request):
        texts = [request.input] if isinstance(request.input, str) else request.input
        vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        data = [{"object": "embedding", "index": index, "embedding": vector.tolist()} for index, vector in enumerate(vectors)]
        return {"object": "list", "data": data, "model": request.model, "usage": {"prompt_tokens": 0, "total_tokens": 0}}

    return app


class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print("ready", flush=True)


def main(folder, port, threads):
    torch.set_num_threads(int(threads))
    Server(uvicorn.Config(make(folder), host="127.0.0.1", port=int(port), log_level="warning")).run()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"say `st_server.py MODEL_FOLDER PORT THREADS`, not {sys.argv[1:]}")
    main(*sys.argv[1:])
