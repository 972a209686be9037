#!/usr/bin/env python3
"""One run of one other way to get resid_post of every layer, in a process of its own.

end_to_end.py starts it: contenders.py NAME --model DIR --tokens FILE --work DIR [...]. When the
captures are there, one JSON line says what that took; only then they are saved for comparison, if
asked for. Every way keeps its captures where it naturally does: in memory, or (loop) in files.

    plain       transformers, the whole model in memory, all layers for one micro-batch at a time
    accelerate  the same with device_map="disk": each module is read whenever it is called
    loop        what one would write by hand: one layer of transformers at a time over all samples,
                the next one read by a thread meanwhile
    lmprobe     lmprobe's DiskOffloadBackend.extract_all: one layer at a time over all samples
"""
import argparse
import collections
import concurrent.futures
import json
import pathlib
import resource
import time
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import init_empty_weights
from lmprobe.activation_types import ExtractionSpec, PreTokenizedPrompts
from lmprobe.backends import DiskOffloadBackend
from safetensors import safe_open
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding


@dataclass
class Job:
    model: pathlib.Path
    samples: list  # int64 [tokens] each
    batch: int  # samples in one call of a layer
    work: pathlib.Path

    def config(self):
        config = AutoConfig.from_pretrained(self.model)
        config._attn_implementation = "sdpa"
        return config

    def batches(self):
        """(ids, mask) [samples, longest of them] in input order, padded on the right."""
        for begin in range(0, len(self.samples), self.batch):
            yield padded(self.samples[begin:begin + self.batch])


def padded(samples):
    ids = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in samples], batch_first=True)
    return ids, mask


class LayerOutputs:
    """Hooks that keep the real rows of every decoder layer's output: transformers' own
    output_hidden_states has the final norm in the place of the last one."""

    def __init__(self, layers):
        self._kept = [[] for _ in layers]
        self.mask = None
        for layer, kept in zip(layers, self._kept):
            layer.register_forward_hook(
                lambda _module, _inputs, output, kept=kept: kept.append(self._real_rows(output)))

    def _real_rows(self, output):
        hidden = output[0] if isinstance(output, tuple) else output
        return hidden[self.mask.bool()]

    def captures(self):
        return [torch.cat(kept) for kept in self._kept]


def run_batches(job, model):
    """Batch by batch through the whole model."""
    outputs = LayerOutputs(model.model.layers)
    for ids, mask in job.batches():
        outputs.mask = mask
        model.model(input_ids=ids, attention_mask=mask, use_cache=False)
    return outputs.captures()


def plain(job):
    return run_batches(job, AutoModelForCausalLM.from_pretrained(
        job.model, dtype=torch.bfloat16, attn_implementation="sdpa"))


def accelerate(job):
    places = {f"model.layers.{i}": "disk" for i in range(job.config().num_hidden_layers)}
    places |= {"model.embed_tokens": "disk", "model.norm": "disk", "lm_head": "disk",
               "model.rotary_emb": "cpu"}
    return run_batches(job, AutoModelForCausalLM.from_pretrained(
        job.model, dtype=torch.bfloat16, attn_implementation="sdpa", device_map=places,
        offload_folder=job.work / "offload"))


def read_tensors(model, prefix):
    """{name without prefix: tensor} of a checkpoint's tensors below `prefix`."""
    index = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
    names_of = collections.defaultdict(list)
    for name, file in index.items():
        if name.startswith(prefix):
            names_of[file].append(name)
    tensors = {}
    for file, names in names_of.items():
        with safe_open(model / file, framework="pt") as weights:
            # A copy now, in the reading thread: a mapped page would be read by the first product.
            tensors |= {name[len(prefix):]: weights.get_tensor(name).clone() for name in names}
    return tensors


@dataclass
class LoopBatch:
    """One micro-batch on its way through the layers."""

    hidden: torch.Tensor
    real: torch.Tensor
    arguments: dict  # what every layer is called with


def loop_batches(job, config):
    embedding = read_tensors(job.model, "model.embed_tokens.")["weight"]
    rotary = LlamaRotaryEmbedding(config)
    for ids, mask in job.batches():
        hidden = torch.nn.functional.embedding(ids, embedding)
        positions = torch.arange(ids.shape[1])
        causal = create_causal_mask(config=config, input_embeds=hidden, attention_mask=mask,
                                    cache_position=positions, past_key_values=None)
        yield LoopBatch(hidden, mask.bool(), {
            "attention_mask": causal, "position_embeddings": rotary(hidden, positions[None])})


def loop(job):
    config = job.config()
    reader = concurrent.futures.ThreadPoolExecutor(1)

    def read(layer):
        return reader.submit(read_tensors, job.model, f"model.layers.{layer}.")

    coming = read(0)
    batches = list(loop_batches(job, config))
    with init_empty_weights():
        layer = LlamaDecoderLayer(config, 0)
    files = []
    for i in range(config.num_hidden_layers):
        layer.load_state_dict(coming.result(), assign=True)
        coming = read(i + 1)  # Behind the last layer there is nothing: an empty dict.
        for batch in batches:
            batch.hidden = layer(batch.hidden, **batch.arguments)
        files.append(job.work / f"loop-{i}.npy")
        np.save(files[-1], bits(torch.cat([batch.hidden[batch.real] for batch in batches])))
    return files


def lmprobe(job):
    backend = DiskOffloadBackend(str(job.model), device="cpu", layers_per_group=1)
    backend._snapshot_dir = job.model  # It would ask the hub for a model's files otherwise.
    ids, mask = padded(job.samples)  # All to one length: its interface takes nothing else.
    layers = list(range(job.config().num_hidden_layers))
    result = backend.extract_all(PreTokenizedPrompts(ids, mask), ExtractionSpec(layers),
                                 batch_size=job.batch)
    real = mask.bool()
    return [result.hidden_per_layer[i][real] for i in layers]


WAYS = {"plain": plain, "accelerate": accelerate, "loop": loop, "lmprobe": lmprobe}


def bits(tensor):
    return tensor.contiguous().view(torch.uint16).numpy()


def save(captures, folder):
    """One .npy of bfloat16 bits [tokens, hidden] per layer."""
    folder.mkdir(parents=True)
    for i, capture in enumerate(captures):
        np.save(folder / f"{i}.npy",
                np.load(capture) if isinstance(capture, pathlib.Path) else bits(capture))


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_mib():
    """Of this program alone; getrusage's figure begins with that of whoever started it."""
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def limit_memory(mib):
    """From here on at most so much private memory more than the imports took; mapped weights count,
    as the memory they become when they are read."""
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    used_kib = next(int(line.split()[1]) for line in status if line.startswith("VmData"))
    limit = (used_kib << 10) + (mib << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--tokens", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-limit", type=int, metavar="MIB")
    parser.add_argument("--save", type=pathlib.Path, metavar="DIR")
    return parser.parse_args()


def main():
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    tokens = load_file(options.tokens)
    samples = [torch.from_numpy(ids.astype(np.int64))
               for ids in np.split(tokens["input_ids"], tokens["offsets"][1:-1])]
    if options.memory_limit:
        limit_memory(options.memory_limit)
    cpu_begin, wall_begin = cpu_seconds(), time.perf_counter()
    captures = WAYS[options.way](Job(options.model, samples, options.batch, options.work))
    print(json.dumps({"wall_s": time.perf_counter() - wall_begin,
                      "cpu_s": cpu_seconds() - cpu_begin, "peak_mib": peak_mib()}), flush=True)
    if options.save:
        save(captures, options.save)


if __name__ == "__main__":
    main()
