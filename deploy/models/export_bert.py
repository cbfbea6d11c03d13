"""Makes model.onnx of a BERT-family model in Hugging Face's layout, without torch.

    python export_bert.py FOLDER_IN FOLDER_OUT

FOLDER_IN holds config.json and model.safetensors (or its shards), with or without the `bert.` prefix. FOLDER_OUT gets
model.onnx and copies of the files that say how to tokenise and to pool. Inputs: input_ids, attention_mask and
token_type_ids, int64 [batch, sequence]. Output, by the weights that are there:

    cls.predictions.*             logits [batch, sequence, vocabulary]   (a masked language model: SPLADE)
    classifier.*, bert.pooler.*   logits [batch, labels]                 (a classifier or a cross-encoder)
    neither                       last_hidden_state [batch, sequence, hidden]

The graph is fixed, and so are its names and their order: the same weights give the same bytes. It is plain ONNX, opset
17, with one choice in it: padding is taken out before the dense layers and put back only around attention. What padded
positions hold in the output is therefore meaningless, and must be masked, as every pooling does; a batch must have at
least one token that is not padding. On ONNX Runtime 1.31 on two cores this was 1.00 to 1.13 times the speed of a graph
that keeps the padding for float32, and 1.2 to 1.5 times once quantized; graphs with ONNX Runtime's own fused
Attention and SkipLayerNormalization were no faster, or slower.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

OPSET = 17
# What ONNX called opset 17's file format: a newer `onnx` would write its own, and so other bytes.
IR_VERSION = 8
COPIED = (
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "1_Pooling",
)


class Refused(Exception):
    """What is wrong with the model, and what to do, for a person."""


def read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refused(f"{path} does not exist. Give the folder of a model in Hugging Face's layout.") from None
    except ValueError as error:
        raise Refused(f"{path} is not JSON ({error}). Fetch the model again.") from None


def read_weights(folder):
    """Every weight as float32, by a name without the `bert.` prefix and without the old names of LayerNorm's two."""
    files = [folder / "model.safetensors"]
    if not files[0].exists():
        index = folder / "model.safetensors.index.json"
        if not index.exists():
            raise Refused(
                f"{folder} has no model.safetensors. Weights in another format (pytorch_model.bin) are not read: "
                "save the model as safetensors, or bring its model.onnx."
            )
        files = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    weights = {}
    for file in files:
        try:
            tensors = load_file(file)
        except Exception as error:  # safetensors raises several kinds
            raise Refused(f"{file} cannot be read ({error}). Fetch the model again.") from None
        for name, tensor in tensors.items():
            name = name.removeprefix("bert.")
            if name.endswith("LayerNorm.gamma"):
                name = name.removesuffix("gamma") + "weight"
            elif name.endswith("LayerNorm.beta"):
                name = name.removesuffix("beta") + "bias"
            weights[name] = tensor.astype(np.float32) if tensor.dtype != np.int64 else tensor
    return weights


class Graph:
    """Nodes in the order that they are added, each named as its output; constants shared by name."""

    def __init__(self, weights):
        self.weights = weights
        self.nodes = []
        self.constants = {}

    def weight(self, name):
        try:
            return self.weights[name]
        except KeyError:
            raise Refused(f"the weights have no `{name}`: this is not a whole BERT. Check which model it is.") from None

    def constant(self, name, value, dtype=np.float32):
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.array(value, dtype=dtype, order="C"), name)
        return name

    def integers(self, name, value):
        return self.constant(name, value, np.int64)

    def add(self, op, inputs, name, outputs=None, **attributes):
        outputs = outputs or [name]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))
        return outputs[0] if len(outputs) == 1 else outputs

    def dense(self, x, name, matrix, bias):
        """x times a matrix [in, out], plus a bias."""
        product = self.add("MatMul", [x, self.constant(f"{name}.weight", matrix)], f"{name}.product")
        return self.add("Add", [product, self.constant(f"{name}.bias", bias)], name)

    def linear(self, x, name):
        """The layer of that name; torch keeps its matrix as [out, in]."""
        return self.dense(x, name, self.weight(f"{name}.weight").T, self.weight(f"{name}.bias"))

    def layer_norm(self, x, name, epsilon):
        scale = self.constant(f"{name}.weight", self.weight(f"{name}.weight"))
        shift = self.constant(f"{name}.bias", self.weight(f"{name}.bias"))
        return self.add("LayerNormalization", [x, scale, shift], name, axis=-1, epsilon=epsilon)

    def activation(self, x, kind, name):
        if kind == "relu":
            return self.add("Relu", [x], name)
        if kind == "gelu":  # x / 2 * (1 + erf(x / sqrt 2)), in the order that ONNX Runtime knows and fuses
            inner = self.add("Div", [x, self.constant("sqrt_two", math.sqrt(2))], f"{name}.scaled")
            inner = self.add("Erf", [inner], f"{name}.erf")
        elif kind in ("gelu_new", "gelu_pytorch_tanh"):
            cube = self.add("Pow", [x, self.constant("three", 3)], f"{name}.cube")
            cube = self.add("Mul", [cube, self.constant("gelu_cubic", 0.044715)], f"{name}.cubic")
            inner = self.add("Add", [x, cube], f"{name}.sum")
            inner = self.add("Mul", [inner, self.constant("gelu_scale", math.sqrt(2 / math.pi))], f"{name}.scaled")
            inner = self.add("Tanh", [inner], f"{name}.tanh")
        else:
            raise Refused(f"config.json has the activation `{kind}`: only gelu, gelu_new, gelu_pytorch_tanh and relu are exported.")
        inner = self.add("Add", [inner, self.constant("one", 1)], f"{name}.plus_one")
        return self.add("Mul", [self.add("Mul", [x, inner], f"{name}.times"), self.constant("half", 0.5)], name)


def check(config):
    kind = config.get("model_type")
    if kind != "bert":
        raise Refused(f"config.json says model_type `{kind}`: only `bert` is exported. Bring this model's own model.onnx.")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise Refused(f"config.json says position_embedding_type `{config['position_embedding_type']}`: only `absolute` is exported.")
    if config.get("is_decoder"):
        raise Refused("config.json says is_decoder: only encoders are exported.")
    for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "hidden_act"):
        if key not in config:
            raise Refused(f"config.json has no `{key}`. Fetch the model again.")
    if config["hidden_size"] % config["num_attention_heads"]:
        raise Refused("config.json has a hidden_size that num_attention_heads does not divide. Fetch the model again.")


def build(config, weights):
    check(config)
    graph = Graph(weights)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    epsilon = config.get("layer_norm_eps", 1e-12)
    act = config["hidden_act"]
    size = hidden // heads
    zero, one, last = graph.integers("axis_0", [0]), graph.integers("axis_1", [1]), graph.integers("minus_one", [-1])

    # Which positions are tokens, and where each position's token is among them.
    shape = graph.add("Shape", ["input_ids"], "shape")
    length = graph.add("Slice", [shape, one, graph.integers("two", [2]), zero], "length")
    rows = graph.add("Concat", [shape, last], "rows", axis=0)
    flat_mask = graph.add("Reshape", ["attention_mask", last], "flat_mask")
    tokens = graph.add("Squeeze", [graph.add("NonZero", [flat_mask], "tokens_2d"), zero], "tokens")
    count = graph.add("CumSum", [flat_mask, graph.integers("scalar_0", 0)], "count")
    place = graph.add("Sub", [count, graph.integers("scalar_1", 1)], "place_or_minus_one")
    place = graph.add("Max", [place, graph.integers("scalar_0", 0)], "place")

    def unpack(x, name):
        """[tokens, …] to [batch, sequence, …]; padding gets a copy of some token."""
        return graph.add("Reshape", [graph.add("Gather", [x, place], f"{name}.flat", axis=0), rows], name)

    def pack(x, name):
        x = graph.add("Reshape", [x, graph.integers("flat", [-1, hidden])], f"{name}.flat")
        return graph.add("Gather", [x, tokens], name, axis=0)

    mask = graph.add("Cast", ["attention_mask"], "mask.float", to=TensorProto.FLOAT)
    mask = graph.add("Sub", [graph.constant("one", 1), mask], "mask.inverse")
    mask = graph.add("Mul", [mask, graph.constant("lowest", np.finfo(np.float32).min)], "mask.scores")
    mask = graph.add("Unsqueeze", [mask, graph.integers("axes_1_2", [1, 2])], "mask")

    def table(name):
        name = f"embeddings.{name}_embeddings.weight"
        return graph.constant(name, graph.weight(name))

    words = graph.add("Gather", [table("word"), "input_ids"], "words")
    types = graph.add("Gather", [table("token_type"), "token_type_ids"], "types")
    positions = graph.add("Slice", [table("position"), zero, length, zero], "positions")
    x = graph.add("Add", [graph.add("Add", [words, types], "words_and_types"), positions], "embeddings")
    x = graph.layer_norm(pack(x, "embeddings.packed"), "embeddings.LayerNorm", epsilon)

    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        attention = f"{layer}.attention"
        # Query, key and value in one product. The query's scale is in its weights.
        part = {}
        for role in ("query", "key", "value"):
            scale = np.float32(1 / math.sqrt(size) if role == "query" else 1)
            part[role] = (
                graph.weight(f"{attention}.self.{role}.weight").T * scale,
                graph.weight(f"{attention}.self.{role}.bias") * scale,
            )
        matrix = np.concatenate([weight for weight, _ in part.values()], axis=1)
        bias = np.concatenate([bias for _, bias in part.values()])
        y = unpack(graph.dense(x, f"{attention}.qkv", matrix, bias), f"{attention}.qkv.rows")
        y = graph.add("Reshape", [y, graph.integers("by_head", [0, 0, 3, heads, size])], f"{attention}.by_head")
        y = graph.add("Transpose", [y], f"{attention}.by_role", perm=[2, 0, 3, 1, 4])
        split = graph.add("Split", [y], f"{attention}.split", [f"{attention}.{role}.split" for role in part], axis=0)
        query, key, value = (graph.add("Squeeze", [s, zero], s.removesuffix(".split")) for s in split)
        key = graph.add("Transpose", [key], f"{attention}.key.transposed", perm=[0, 1, 3, 2])
        scores = graph.add("Add", [graph.add("MatMul", [query, key], f"{attention}.scores"), mask], f"{attention}.masked")
        scores = graph.add("Softmax", [scores], f"{attention}.softmax", axis=-1)
        y = graph.add("MatMul", [scores, value], f"{attention}.mixed")
        y = graph.add("Transpose", [y], f"{attention}.by_token", perm=[0, 2, 1, 3])
        y = graph.linear(pack(y, f"{attention}.packed"), f"{attention}.output.dense")
        x = graph.add("Add", [x, y], f"{attention}.output.sum")
        x = graph.layer_norm(x, f"{attention}.output.LayerNorm", epsilon)

        y = graph.linear(x, f"{layer}.intermediate.dense")
        y = graph.activation(y, act, f"{layer}.intermediate.act")
        y = graph.linear(y, f"{layer}.output.dense")
        x = graph.add("Add", [x, y], f"{layer}.output.sum")
        x = graph.layer_norm(x, f"{layer}.output.LayerNorm", epsilon)

    if any(name.startswith("cls.predictions.") for name in weights):
        head = "cls.predictions"
        x = graph.linear(x, f"{head}.transform.dense")
        x = graph.activation(x, act, f"{head}.transform.act")
        x = graph.layer_norm(x, f"{head}.transform.LayerNorm", epsilon)
        # The matrix is the word embeddings' unless it is there by itself; its bias has two names.
        matrix = weights.get(f"{head}.decoder.weight", graph.weight("embeddings.word_embeddings.weight")).T
        bias = weights.get(f"{head}.decoder.bias")
        bias = graph.weight(f"{head}.bias") if bias is None else bias
        x = unpack(graph.dense(x, f"{head}.decoder", matrix, bias), f"{head}.rows")
        output, dims = "logits", ["batch", "sequence", matrix.shape[1]]
    elif "classifier.weight" in weights:
        if "pooler.dense.weight" not in weights:
            raise Refused(
                "the weights have a classifier but no pooler: that is a model that labels each token, which is not "
                "exported. Bring this model's own model.onnx."
            )
        x = unpack(x, "rows_of_tokens")
        x = graph.add("Gather", [x, graph.integers("scalar_0", 0)], "first_tokens", axis=1)
        x = graph.add("Tanh", [graph.linear(x, "pooler.dense")], "pooler")
        x = graph.linear(x, "classifier")
        output, dims = "logits", ["batch", graph.weight("classifier.bias").shape[0]]
    else:
        x = unpack(x, "rows_of_tokens")
        output, dims = "last_hidden_state", ["batch", "sequence", hidden]
    graph.add("Identity", [x], output)

    inputs = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in inputs]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, dims)]
    made = helper.make_graph(graph.nodes, "bert", inputs, outputs, list(graph.constants.values()))
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="nerve"
    )


def copy_around(source, target):
    """What stands beside a model.onnx: how to tokenise, to pool and to name labels."""
    for name in COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        elif (source / name).exists():
            shutil.copyfile(source / name, target / name)


def main(arguments):
    if len(arguments) != 2:
        raise Refused("say `export_bert.py FOLDER_IN FOLDER_OUT`.")
    source, target = map(Path, arguments)
    if source.resolve() == target.resolve():
        raise Refused("FOLDER_OUT is FOLDER_IN: name another folder.")
    model = build(read_json(source / "config.json"), read_weights(source))
    target.mkdir(parents=True, exist_ok=True)
    (target / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    copy_around(source, target)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Refused as refused:
        sys.exit(f"export_bert: {refused}")
    except OSError as error:
        sys.exit(f"export_bert: {error}")
