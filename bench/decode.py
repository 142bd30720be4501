"""Decode greedily through packed weights, and through the same weights dequantized.

Run as python bench/decode.py [--size tiny|1b|8b] [--format u4b8] [--steps N] [--record FILE].
A model shaped like Llama gets random weights, which are quantized. Three models share
them: one runs on Billhook's kernels, one on torch's over bf16 weights dequantized from
the same codes, one, where memory allows, on float32: the truth that both are compared
with. Each generates by itself, to find the first token that differs; then all are fed
the tokens of the bf16 model, to compare logits step by step. On a GPU a decoding step
is one CUDA graph over a static cache, and steps of both are timed in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, StaticCache

from billhook.formats.host import HostWeight, quantize, split
from billhook.measure.machine import append_lines
from billhook.nn import QuantLinear
from billhook.ops import pack_quantized
from billhook.ops.drawn import Drawn
from billhook.ops.tensors import from_numpy
from billhook.weights import FORMATS

SIZES = {
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
    },
    "1b": {  # Llama-3.2-1B
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "8b": {  # Llama-3.1-8B
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
PROMPT = 16  # tokens
WARM_UP = 3  # steps before one is captured
ROUNDS = 10
MOST_WORKERS = 16  # each holds a few float32 copies of a weight
COLUMNS = 2048  # of a weight that are held in float64 at a time


class Decoder:
    """A model that decodes one token after the other; on a GPU, each step replays one CUDA graph.

    Args:
        model: The model.
        batch: Sequences side by side.
        length: The most tokens of a sequence.
        compiled: Whether torch.compile fuses what is around the GEMMs.
    """

    def __init__(self, model: Any, batch: int, length: int, compiled: bool) -> None:
        self._model = model
        self._forward = torch.compile(model, dynamic=False) if compiled else model
        self._cache = StaticCache(config=model.config, max_cache_len=length)
        self._graph: torch.cuda.CUDAGraph | None = None
        self.token = torch.zeros(batch, 1, dtype=torch.int64, device=model.device)
        self.logits = torch.zeros(0)

    def start(self, prompt: torch.Tensor) -> None:
        """Read the prompt and choose the first token."""
        if self._graph is None and self.token.is_cuda:
            self._graph = self._capture(prompt)
        self._cache.reset()
        output = self._model(prompt, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self.token.copy_(output.logits[:, -1].argmax(-1, keepdim=True))

    def advance(self) -> None:
        """Read `token`, and choose the next: `token` and `logits` [batch, vocabulary] change."""
        if self._graph is None:
            self._step()
        else:
            self._graph.replay()

    def _step(self) -> None:
        output = self._forward(self.token, past_key_values=self._cache, use_cache=True)
        self.logits = output.logits[:, -1]
        self.token.copy_(self.logits.argmax(-1, keepdim=True))

    def _capture(self, prompt: torch.Tensor) -> torch.cuda.CUDAGraph:
        """Capture a step, once the prompt has made the cache and a few steps have made the rest."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._model(prompt, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            for _ in range(WARM_UP):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph


@dataclass
class Difference:
    """How the logits of one model differ from another's over the same tokens.

    Args:
        largest: Largest difference of a logit.
        squares: Sum of the squared differences.
        others: Sum of the other's squared logits.
        alike: (sequence, step) pairs at which both choose the same token.
        choices: All such pairs.
        gap: Where they do not, the most that the other prefers its own choice by.
    """

    largest: float = 0.0
    squares: float = 0.0
    others: float = 0.0
    alike: int = 0
    choices: int = 0
    gap: float = 0.0

    def add(self, logits: torch.Tensor, other: torch.Tensor) -> None:
        """Take one step's logits [batch, vocabulary] into account."""
        difference = logits.double() - other.double()
        self.largest = max(self.largest, float(difference.abs().max()))
        self.squares += float(difference.square().sum())
        self.others += float(other.double().square().sum())
        mine, theirs = logits.argmax(-1, keepdim=True), other.argmax(-1, keepdim=True)
        self.alike += int((mine == theirs).sum())
        self.choices += len(logits)
        self.gap = max(self.gap, float((other.gather(1, theirs) - other.gather(1, mine)).max()))

    def report(self) -> dict[str, float]:
        """Return what to record."""
        return {
            "largest": round(self.largest, 5),
            "relative_rms": round((self.squares / self.others) ** 0.5, 6),
            "same_choice": round(self.alike / self.choices, 4),
            "largest_gap": round(self.gap, 5),
        }


@torch.no_grad()
def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Build, compare, time, print, and record if asked."""
    options = parse(arguments)
    device = torch.device(options.device)
    torch.manual_seed(0)
    start = time.perf_counter()
    models = build(options, device)
    seconds = time.perf_counter() - start
    prompt = torch.randint(0, models["bf16"].config.vocab_size, (options.batch, PROMPT), device=device)
    length = PROMPT + max(options.steps, WARM_UP) + 1
    decoders = {
        name: Decoder(model, options.batch, length, options.compile) for name, model in models.items()
    }
    chosen = {name: generate(decoders[name], prompt, options.steps) for name in ("packed", "bf16")}
    found: dict[str, Any] = {
        "transformers": transformers.__version__,
        "size": options.size,
        "format": options.format,
        "group_size": options.group_size or FORMATS[options.format].group_sizes[0],
        "batch": options.batch,
        "steps": options.steps,
        "compiled": options.compile,
        "build_seconds": round(seconds, 1),
        "layers_gib": {name: round(count_bytes(model) / 2**30, 3) for name, model in models.items()},
        "first_divergence": first_difference(chosen["packed"], chosen["bf16"]),
        **compare(decoders, prompt, chosen["bf16"]),
    }
    if device.type == "cuda":
        found["tokens_per_second"] = measure(decoders, prompt, options.steps)
    print(json.dumps(found, indent=2))
    if options.record:
        append_lines(options.record, [found], "bench/decode.py", device)
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--format", choices=FORMATS, default="u4b8")
    parser.add_argument("--group-size", type=int, help="the format's own if not given")
    parser.add_argument("--steps", type=int, default=128, help="tokens to generate after the first")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--no-truth", action="store_true", help="leave out the float32 model")
    parser.add_argument(
        "--compile", action="store_true", help="let torch.compile fuse what is around the GEMMs"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--record", type=Path, help="append the result to this file, as one JSON line")
    return parser.parse_args(arguments)


def build(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return the models by name; a few weights at a time are held in other forms than theirs."""
    config = LlamaConfig(**SIZES[options.size], tie_word_embeddings=False, max_position_embeddings=8192)
    dtypes = {"packed": torch.bfloat16, "bf16": torch.bfloat16, "f32": torch.float32}
    if options.no_truth:
        del dtypes["f32"]
    with torch.device("meta"):
        models = {name: AutoModelForCausalLM.from_config(config, dtype=one) for name, one in dtypes.items()}
    reference = models["bf16"]
    linear = [
        name
        for name, module in reference.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    ]

    on_device = threading.Lock()  # one weight at a time takes up memory there in other forms than its own

    def fill(number: int) -> None:
        name = linear[number]
        n, k = reference.get_submodule(name).weight.shape
        generator = torch.Generator(device).manual_seed(number)
        weight = torch.randn(k, n, generator=generator, device=device).cpu().numpy() / np.float32(k**0.5)
        value = quantize(weight, options.format, options.group_size)
        with on_device:
            models["packed"].set_submodule(name, QuantLinear(pack_quantized(value, device, torch.bfloat16)))
            exact = dequantize(value, device)
            for other in dtypes.keys() - {"packed"}:
                set_parameter(models[other], f"{name}.weight", exact.to(dtypes[other]))

    with ThreadPoolExecutor(min(MOST_WORKERS, os.cpu_count() or 1)) as pool:
        list(pool.map(fill, range(len(linear))))
    generator = torch.Generator(device).manual_seed(len(linear))
    for name, parameter in list(reference.named_parameters()):
        if not parameter.is_meta:
            continue
        value = torch.ones(parameter.shape, device=device)
        if parameter.dim() == 2:  # the embedding, to unit length of each feature; and what makes logits of it
            value = torch.randn(parameter.shape, generator=generator, device=device)
            value *= 1.0 if "embed" in name else parameter.shape[1] ** -0.5
        for other, dtype in dtypes.items():
            set_parameter(models[other], name, value.bfloat16().to(dtype))
    for model in models.values():
        model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    return {name: model.eval() for name, model in models.items()}


def dequantize(value: HostWeight, device: torch.device) -> torch.Tensor:
    """Return what a quantized weight stands for once it is packed for bf16 activations, float32 [n, k].

    Args:
        value: The weight.
        device: Where to compute it; on the host that takes as long as quantizing.
    """
    parts = split(value)
    codes, scales, zeros, whole, channels = (
        None if one is None else from_numpy(one).to(device)
        for one in (parts.codes, parts.scales, parts.zeros, parts.global_scales, parts.channel_scales)
    )
    held = FORMATS[parts.format]
    scales = scales if held.scale else scales.bfloat16()
    weight = Drawn(held, codes, scales, zeros, whole, parts.group_size, channels)
    columns = torch.arange(codes.shape[1], device=device).split(COLUMNS)
    return torch.cat([weight.exact(some).T.float() for some in columns])


def set_parameter(model: Any, name: str, value: torch.Tensor) -> None:
    """Give a parameter of a model a tensor."""
    place, _, last = name.rpartition(".")
    setattr(model.get_submodule(place), last, torch.nn.Parameter(value, requires_grad=False))


def count_bytes(model: Any) -> int:
    """Return the memory of the decoder layers' weights, which every step reads."""
    return sum(tensor.nbytes for tensor in (*model.model.layers.parameters(), *model.model.layers.buffers()))


def generate(decoder: Decoder, prompt: torch.Tensor, steps: int) -> torch.Tensor:
    """Return the tokens that a model chooses by itself, [batch, steps + 1]."""
    decoder.start(prompt)
    tokens = [decoder.token.clone()]
    for _ in range(steps):
        decoder.advance()
        tokens.append(decoder.token.clone())
    return torch.cat(tokens, dim=1)


def first_difference(tokens: torch.Tensor, others: torch.Tensor) -> int | None:
    """Return the first step at which any sequence differs; None if none does."""
    steps = (tokens != others).any(dim=0).nonzero().flatten().tolist()
    return steps[0] if steps else None


def compare(decoders: dict[str, Decoder], prompt: torch.Tensor, tokens: torch.Tensor) -> dict[str, Any]:
    """Feed all models the same tokens and return how their logits differ."""
    differences = {
        (name, other): Difference()
        for name, other in (("packed", "bf16"), ("packed", "f32"), ("bf16", "f32"))
        if other in decoders
    }
    for decoder in decoders.values():
        decoder.start(prompt)
    for step in range(tokens.shape[1] - 1):
        for decoder in decoders.values():
            decoder.token.copy_(tokens[:, step : step + 1])
            decoder.advance()
        for (name, other), difference in differences.items():
            difference.add(decoders[name].logits, decoders[other].logits)
    return {f"{name}_to_{other}": one.report() for (name, other), one in differences.items()}


def measure(decoders: dict[str, Decoder], prompt: torch.Tensor, steps: int) -> dict[str, float]:
    """Return tokens per second of both bf16 models: medians over rounds, in turns."""
    seconds: dict[str, list[float]] = {"packed": [], "bf16": []}
    for _ in range(ROUNDS):
        for name, times in seconds.items():
            decoder = decoders[name]
            decoder.start(prompt)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(steps):
                decoder.advance()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1000)
    return {name: round(len(prompt) * steps / statistics.median(times), 1) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
