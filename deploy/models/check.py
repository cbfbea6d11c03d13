"""Checks an exported all-MiniLM-L6-v2, float32 or int8, against vectors that are known.

    python check.py FOLDER

The vector of "This is an example sentence" is the one that sentence-transformers gives: to 1e-4, or for int8 its first
five numbers to a cosine of 0.97; and padding a sentence to a batch's length does not change it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

SENTENCE = "This is an example sentence"
OTHER = "This sentence is an example of a sentence that is longer than the other sentence"
KNOWN = np.array([0.06766, 0.06350, 0.04871, 0.07930, 0.03745])


def main(folder):
    # Every word is one token of the vocabulary, so that this needs no tokeniser.
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    # The int8 one is 23 MB, the float32 one 90.
    quantized = (folder / "model.onnx").stat().st_size < 45_000_000

    def embed(*texts):
        rows = [[vocabulary[word] for word in ("[CLS]", *text.lower().split(), "[SEP]")] for text in texts]
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        states = session.run(["last_hidden_state"], feed)[0]
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    alone = embed(SENTENCE)[0]
    padded = embed(SENTENCE, OTHER)[0]
    first = alone[: len(KNOWN)]
    if quantized:
        likeness = float(first @ KNOWN / np.linalg.norm(first) / np.linalg.norm(KNOWN))
        same, padding = likeness > 0.97, float(alone @ padded) > 0.97
    else:
        same, padding = np.abs(first - KNOWN).max() < 1e-4, np.abs(alone - padded).max() < 1e-5
    if not same:
        sys.exit(f"check: {folder} embeds {SENTENCE!r} as {first.round(5)}…, not as {KNOWN}…: it is exported wrongly, or is another model.")
    if not padding:
        sys.exit(f"check: {folder} embeds {SENTENCE!r} otherwise beside a longer sentence than alone: padding is not masked.")
    print(f"check: {folder} embeds as it should")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("check: say `check.py FOLDER`.")
    main(Path(sys.argv[1]))
