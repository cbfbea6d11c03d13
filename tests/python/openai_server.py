"""llama.cpp's own server, with a model that is made here: chat completions as OpenAI's API has them.

    python openai_server.py NAME [--port PORT] [--key KEY]

It prints one line of JSON, {"url": …}, once it is ready, and ends at the end of its stdin or at SIGTERM. The model is a
Llama of two layers with weights from a seed. What it says is nonsense, but at temperature 0 the same nonsense each
time, and of different prompts a different one.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading

import gguf
import numpy as np
import xllamacpp

SEED = 7
WIDTH, HEADS, LAYERS, INNER, CONTEXT = 64, 4, 2, 128, 4096
# What it can say; the marks among it name documents.
WORDS = """the a late early invoice order refund fee week day month customer costs takes pays waits stops more less ten
five percent in of for and or but not is was were paid due open closed long short before after each with without
report answer question price rate letter note [1] [2] , ; :""".split()
# Of each turn: who speaks, what is said, and the end of the line.
TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}<assistant>"


def vocabulary():
    """Pieces, their scores and their types, as a SentencePiece model has them: what is no piece is read by its bytes."""
    letters = [chr(code) for code in range(33, 127)]
    said = ["▁" + word for word in WORDS]
    rows = [("<unk>", 0.0, gguf.TokenType.UNKNOWN), ("<s>", 0.0, gguf.TokenType.CONTROL)]
    rows += [("</s>", 0.0, gguf.TokenType.CONTROL)]
    rows += [(f"<0x{byte:02X}>", 0.0, gguf.TokenType.BYTE) for byte in range(256)]
    # Words are merged out of their beginnings, so these are pieces too.
    parts = sorted({piece[:end] for piece in said for end in range(1, len(piece))}, key=lambda part: (len(part), part))
    rows += [(part, -1000.0 + len(part), gguf.TokenType.NORMAL) for part in parts if part not in said]
    rows += [(piece, -1000.0 + len(piece), gguf.TokenType.NORMAL) for piece in said]
    known = {row[0] for row in rows}
    rows += [(letter, -2000.0, gguf.TokenType.NORMAL) for letter in letters if letter not in known]
    return rows, [index for index, row in enumerate(rows) if row[0] in {*said, "</s>"}]


def tensors(size, said):
    """Weights. After each piece one word is likeliest; what was read before makes it another often enough."""
    draw = np.random.Generator(np.random.PCG64(SEED))

    def normal(rows, columns, scale):
        return (draw.standard_normal((rows, columns)) * scale).astype(np.float32)

    embeddings = normal(size, WIDTH, 1.0)
    after = draw.permutation(said)
    output = np.zeros((size, WIDTH), dtype=np.float32)
    output[after] = embeddings[said] * 0.5
    output[said] += normal(len(said), WIDTH, 0.3)
    yield "token_embd.weight", embeddings
    yield "output_norm.weight", np.ones(WIDTH, dtype=np.float32)
    yield "output.weight", output
    # Strong queries and keys look at few places: the mean of many is much the same for any text.
    attention = {"attn_q": 4.0, "attn_k": 4.0, "attn_v": 1.5, "attn_output": 1.5}
    for layer in range(LAYERS):
        yield f"blk.{layer}.attn_norm.weight", np.ones(WIDTH, dtype=np.float32)
        yield f"blk.{layer}.ffn_norm.weight", np.ones(WIDTH, dtype=np.float32)
        for name, scale in attention.items():
            yield f"blk.{layer}.{name}.weight", normal(WIDTH, WIDTH, scale * WIDTH**-0.5)
        yield f"blk.{layer}.ffn_gate.weight", normal(INNER, WIDTH, WIDTH**-0.5)
        yield f"blk.{layer}.ffn_up.weight", normal(INNER, WIDTH, WIDTH**-0.5)
        yield f"blk.{layer}.ffn_down.weight", normal(WIDTH, INNER, INNER**-0.5)


def make(path):
    """Writes the model."""
    rows, said = vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(len(rows))
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([row[0].encode() for row in rows])
    writer.add_token_scores([row[1] for row in rows])
    writer.add_token_types([int(row[2]) for row in rows])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, weights in tensors(len(rows), said):
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def serve(model, name, port, key):
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {name}
    params.port = port
    params.api_keys = [key] if key else []
    params.n_ctx = CONTEXT
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.ui = False
    params.warmup = False
    params.fit_params = False
    # What was asked before would change the last digits of what comes, and so, where two words are alike, the word.
    params.cache_prompt = False
    params.cache_ram_mib = 0
    return xllamacpp.Server(params)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key")
    options = parser.parse_args()
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    threading.Thread(target=lambda: (sys.stdin.read(), end.set()), daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(folder, "model.gguf")
        make(model)
        server = serve(model, options.name, options.port, options.key)
    print(json.dumps({"url": f"{server.listening_address.rstrip('/')}/v1"}), flush=True)
    end.wait()


if __name__ == "__main__":
    main()
