"""fastembed over the same model.onnx.

    python fastembed_loop.py MODEL_FOLDER TEXTS.json THREADS

TEXTS.json is an array of strings. It tries some sizes of batch and keeps the fastest, says so in one line of JSON, and
then, for each line on its standard input, embeds all texts once and prints the texts a second.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

SIZES = (8, 32, 128)


def main(folder, texts, threads):
    texts = json.loads(Path(texts).read_text(encoding="utf-8"))
    TextEmbedding.add_custom_model(
        model="bench/minilm", pooling=PoolingType.MEAN, normalization=True, dim=384, model_file="model.onnx",
        sources=ModelSource(hf="bench/minilm"),
    )  # fmt: skip
    model = TextEmbedding("bench/minilm", specific_model_path=folder, threads=int(threads))

    def rate(size):
        start = time.perf_counter()
        for _ in model.embed(texts, batch_size=size):
            pass
        return len(texts) / (time.perf_counter() - start)

    rate(SIZES[0])
    size = max(SIZES, key=rate)
    print(json.dumps({"batch": size, "version": version("fastembed")}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"rate": rate(size)}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"say `fastembed_loop.py MODEL_FOLDER TEXTS.json THREADS`, not {sys.argv[1:]}")
    main(*sys.argv[1:])
