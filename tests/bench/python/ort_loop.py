"""The best loop over ONNX Runtime that one would write in Python: tokenise, sort by length, pad, run, pool, normalise.

    python ort_loop.py MODEL_FOLDER TEXTS.json THREADS [--arrival]

TEXTS.json is an array of strings. It tries every size of batch and keeps the fastest, says so in one line of JSON, and
then, for each line on its standard input, embeds all texts once and prints the texts a second. With --arrival batches
are made in the order of the texts, as they must be where texts come one after the other.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

SIZES = (4, 8, 16, 32, 64, 128)


class Loop:
    def __init__(self, folder, texts, threads, by_length):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        limit = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
        self.tokenizer.enable_truncation(limit)
        self.tokenizer.no_padding()
        self.texts = texts
        self.by_length = by_length

    def embed(self, size):
        """The vectors of all texts, in their order."""
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(self.texts)]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index])) if self.by_length else range(len(ids))
        batches = [order[start : start + size] for start in range(0, len(ids), size)]
        vectors = np.zeros((len(ids), 384), np.float32)
        for batch in batches:
            width = max(len(ids[index]) for index in batch)
            tokens = np.zeros((len(batch), width), np.int64)
            mask = np.zeros_like(tokens)
            for row, index in enumerate(batch):
                tokens[row, : len(ids[index])] = ids[index]
                mask[row, : len(ids[index])] = 1
            feed = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
            states = self.session.run(["last_hidden_state"], feed)[0]
            mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            vectors[list(batch)] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return vectors

    def rate(self, size):
        start = time.perf_counter()
        self.embed(size)
        return len(self.texts) / (time.perf_counter() - start)

    def best_size(self):
        self.rate(SIZES[0])
        return max(SIZES, key=self.rate)


def main(folder, texts, threads, *order):
    texts = json.loads(Path(texts).read_text(encoding="utf-8"))
    loop = Loop(Path(folder), texts, int(threads), order != ("--arrival",))
    size = loop.best_size()
    print(json.dumps({"batch": size, "version": onnxruntime.__version__}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"rate": loop.rate(size)}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(f"say `ort_loop.py MODEL_FOLDER TEXTS.json THREADS [--arrival]`, not {sys.argv[1:]}")
    main(*sys.argv[1:])
