#!/usr/bin/env python3
"""Random variations of every family: is what Librarian extracts still what transformers computes?

Goal: find what no fixed golden has: sizes, flags, rope parameters, layer patterns, keys of
config.json that are left out so that the class default applies.
Method: draw a config, write its checkpoint as transformers does, drop keys, let transformers read
that folder and compute in float32 and in the 16-bit type, run `librarian extract`, compare with the
tolerances of tests/python/test_golden.py. Where there are experts, each token must meet the same in
float32, by the same weights; in 16 bits, tokens that meet others and those behind are left out.

    python try_families.py LIBRARIAN [--families llama,gemma2] [--trials 20] [--seed 0] [--keep DIR]

One line per trial: ok, FAILED with what differs and the config, or refused with Librarian's words.
Exit code 1 if a trial failed. Configs are in the dialect of the transformers that runs it, so run
it with 4.x and with 5.x. Needs what make_golden.py needs, and tests/requirements.txt.
"""

import argparse
import collections
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "python"), str(HERE.parents[1] / "examples")]

import make_golden  # noqa: E402  (needs the path above; first, because it sets the environment)
import expert_draws  # noqa: E402
import family_draws  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from family_draws import Draw, sizes  # noqa: E402
from support import read_store  # noqa: E402
from test_golden import (  # noqa: E402
    F32_ERROR_MAX, FLIPPED_MAX, and_behind, captures_of, errors_in_16_bit, errors_in_f32,
    flipped_tokens, sorted_by_expert)

USAGE, BAD_INPUT = 2, 3
SECONDS_MAX = 120
CONFIG_TRIES = 200  # draws that transformers itself refuses
REDRAWS = 5  # other weights for a trial that went over a limit
F32_ERROR_CERTAIN = 1e-3  # more is no rounding, whatever the weights
CLOSE_TRIES = 40  # weights with which some choice of experts is too close
FLIPPED_RATIO_MAX = 1.5  # of Librarian's share of tokens with other experts to transformers' own
KEPT_MIN = 20  # tokens; fewer have no median worth comparing
FAMILIES = {**family_draws.FAMILIES, **expert_draws.FAMILIES}
# Without these keys, or with other values, the weights do not fit.
SHAPE_KEYS = {"model_type", "vocab_size", "pad_token_id", "hidden_size", "intermediate_size",
              "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "num_kv_heads",
              "head_dim", "n_embd", "n_layer", "n_head", "n_inner", "n_positions", "ffn_dim",
              "ffn_hidden_size", "word_embed_proj_dim", "max_position_embeddings",
              "type_vocab_size"}


def draw_config(family, generator):
    """A config that transformers accepts, and the class that makes its model."""
    for _ in range(CONFIG_TRIES):
        draw = Draw(generator, {})
        sizes(draw)
        for key, values in family.options.items():
            draw.maybe(0.7, **{key: values})
        if family.learned_positions:
            draw.config["max_position_embeddings"] = max(
                draw.config["max_position_embeddings"], family.longest_sample)
        for step in family.more:
            step(draw)
        try:
            return build_config(family.config_class, draw.config), generator.choice(
                family.auto_classes)
        except Exception:  # Whatever transformers raises at a combination it cannot use.
            continue
    raise SystemExit(f"{family.config_class}: no config of {CONFIG_TRIES} was accepted")


def build_config(class_name, drawn):
    """The config class with what it knows of the drawn keys; `...` leaves the class default."""
    config_class = getattr(transformers, class_name)
    if "text_config" in drawn:
        text_class = config_class.sub_configs["text_config"].__name__
        return config_class(**{**drawn, "text_config": build_config(
            text_class, drawn["text_config"]).to_dict()})
    known = config_class()
    optional = {"rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_pct",
                "rotary_emb_base", "rope_local_base_freq", "sliding_window_pattern", "head_dim",
                "original_max_position_embeddings", "no_rope_layer_interval", "scoring_func",
                "topk_method", "moe_layer_freq", "ep_size", "num_nextn_predict_layers"}
    return config_class(**{key: value for key, value in drawn.items()
                           if value is not ... and (hasattr(known, key) or key in optional)})


def drop_keys(path, class_name, generator):
    """Leave out some keys that no weight depends on, and say which.

    Mostly those that equal the class default, as hand-written configs do.
    """
    config = json.loads(path.read_text())
    inner = config.get("text_config", config)
    config_class = getattr(transformers, class_name)
    if inner is not config:
        config_class = config_class.sub_configs["text_config"]
    default = config_class().to_dict()
    dropped = [key for key, value in sorted(inner.items())
               if key != "model_type" and generator.random() < (
                   0.4 if default.get(key, ...) == value else 0.0 if key in SHAPE_KEYS else 0.04)]
    for key in dropped:
        del inner[key]
    if config.get("transformers_version", "").startswith("4.") and generator.random() < 0.3 \
            and "torch_dtype" in config:
        config["dtype"] = config.pop("torch_dtype")  # 4.56 and 4.57 write it so.
    make_golden.write_json(path, config)
    return dropped


def fits(folder, auto_class):
    """Whether transformers still finds each weight that a capture depends on, and can run."""
    try:
        model, report = make_golden.load_model(folder, auto_class, "f32")
        model(input_ids=torch.tensor([[make_golden.FIRST_TOKEN_ID] * 3]))
    except Exception:  # Whatever transformers raises at a config it cannot use.
        return False
    needed = [key for key in report["missing_keys"] if not key.startswith(("lm_head", "embed_out"))]
    return not (needed or report["unexpected_keys"] or report["mismatched_keys"])


@dataclass(frozen=True)
class Trial:
    """A checkpoint and tokens in `folder`, and how to run them."""

    folder: pathlib.Path
    auto_class: str
    weights: str
    wide: str  # pattern of tensors that are stored as float32
    samples: list
    left_out: list  # keys of config.json
    options: list  # of `librarian extract`

    @property
    def model(self):
        return self.folder / "model"

    @property
    def half(self):
        return "f16" if self.weights == "f16" else "bf16"

    def facts(self):
        return [f"{self.auto_class} {self.weights} {'and f32 ' if self.wide else ''}"
                f"tokens {sum(map(len, self.samples))} "
                f"{' '.join(self.options)}", f"left out: {' '.join(self.left_out) or '-'}"]


def make_model(config, auto_class, seed):
    """A random model; in transformers 4, no bias of a choice of experts is below 0.

    There the score of experts outside the best groups is 0, which then wins, against DeepSeek's own
    code and transformers 5.
    """
    model = make_golden.make_model(config, auto_class, seed)
    if make_golden.TRANSFORMERS_MAJOR == 4:
        for name, tensor in model.state_dict().items():
            if name.endswith("e_score_correction_bias"):
                tensor.abs_()
    return model


def write_checkpoint(family, folder, generator, seed):
    """A model that transformers can load again; its config, auto class and two types of weights."""
    for _ in range(CONFIG_TRIES):
        config, auto_class = draw_config(family, generator)
        weights = generator.choice(("bf16", "bf16", "bf16", "bf16", "f16", "f32"))
        file_bytes = generator.choice((8_000, 60_000, 1_000_000_000))
        wide = family.wide if family.wide and generator.random() < 0.7 else ""
        shutil.rmtree(folder, ignore_errors=True)
        try:
            model = make_model(config, auto_class, seed)
        except Exception:  # The config was accepted, the model is not.
            continue
        make_golden.narrow(model, weights, wide)
        make_golden.save_model(model, folder, file_bytes)
        if fits(folder, auto_class):
            return config, auto_class, weights, wide
    raise SystemExit(f"{family.config_class}: no model of {CONFIG_TRIES} could be loaded")


def make_trial(family, folder, seed):
    """Draw a trial and write its files."""
    generator = random.Random(seed)
    config, auto_class, weights, wide = write_checkpoint(family, folder / "model", generator, seed)
    config_path = folder / "model" / "config.json"
    complete = config_path.read_text()
    left_out = drop_keys(config_path, family.config_class, generator)
    if not fits(folder / "model", auto_class):
        config_path.write_text(complete)
        left_out = []
    lengths = [generator.randint(1, family.longest_sample) for _ in range(4)]
    lengths += [1, family.longest_sample, generator.randint(17, 34)]
    generator.shuffle(lengths)
    samples = make_golden.make_samples(config.get_text_config().vocab_size, lengths, seed)
    make_golden.write_tokens(folder / "tokens.safetensors", samples)
    options = [str(value) for option, values in (("--block-tokens", family.block_tokens),
                                                 ("--part-tokens", (50, 120)))
               if generator.random() < 0.4 for value in (option, generator.choice(values))]
    return Trial(folder, auto_class, weights, wide, samples, left_out, options)


def redraw_weights(trial, seed):
    """Other weights for the same config.json."""
    config_text = (trial.model / "config.json").read_text()
    config = transformers.AutoConfig.from_pretrained(trial.model)
    model = make_model(config, trial.auto_class, seed)
    shutil.rmtree(trial.model)
    make_golden.narrow(model, trial.weights, trial.wide)
    make_golden.save_model(model, trial.model, 1_000_000_000)
    (trial.model / "config.json").write_text(config_text)


def run_transformers(trial, type_name):
    """Captures, what routers chose, and the smallest gap of a choice."""
    model, _ = make_golden.load_model(trial.model, trial.auto_class, type_name)
    captures, _, routed, margin = make_golden.run_routed(model, trial.samples)
    return captures, routed, margin


def run_decided(trial):
    """The same in float32, with other weights if a choice of experts is close."""
    for seed in range(CLOSE_TRIES):
        captures, routed, margin = run_transformers(trial, "f32")
        if margin >= make_golden.MARGIN_MIN:
            return captures, as_arrays(routed)
        redraw_weights(trial, 1000 + seed)
    raise SystemExit(f"{trial.folder}: with any weights some choice of experts is close")


def as_arrays(tensors):
    return {name: tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
            for name, tensor in tensors.items()}


def extract(librarian, trial, type_name, captures):
    """The finished process; its store is folder/<type_name>."""
    store = trial.folder / type_name
    shutil.rmtree(store, ignore_errors=True)
    return subprocess.run(
        [librarian, "extract", trial.model, "--tokens", trial.folder / "tokens.safetensors",
         "--out", store, "--dtype", type_name, "--capture", captures, *trial.options],
        capture_output=True, text=True, timeout=SECONDS_MAX)


def errors_in_routers(got, routers):
    """One line per layer that chooses other experts in float32, or weighs them differently."""
    lines = []
    for name, ids in routers.items():
        if name.endswith("ids"):
            got_ids, got_weights = sorted_by_expert(got, name)
            truth = routers[name.removesuffix("ids") + "weights"]
            if np.array_equal(got_ids, ids):
                wrong = np.abs(got_weights - truth) / (np.abs(truth) + 1e-3)
                error = wrong.max() if wrong.max() > F32_ERROR_MAX else 0.0
            else:
                error = 1.0
            lines += [f"{name}: worst token {error:.2e}"] if error else []
    return lines


def errors_of_half(trial, got, truth, routers):
    """The lines of errors_in_16_bit() for tokens that meet the same experts as in float32."""
    captures, routed, _ = run_transformers(trial, trial.half)
    kept, lines = np.ones(len(truth["embed"]), dtype=bool), []
    if routers:
        offsets = np.cumsum([0] + [len(sample) for sample in trial.samples])
        ours, theirs = flipped_tokens(got, routers), flipped_tokens(as_arrays(routed), routers)
        if ours.mean() > max(FLIPPED_MAX, FLIPPED_RATIO_MAX * theirs.mean()):
            lines = [f"experts: others for {ours.mean():.0%} of tokens, transformers "
                     f"{theirs.mean():.0%}"]
        kept = ~and_behind(ours | theirs, offsets)
    if kept.sum() < KEPT_MIN:
        return lines
    medians = make_golden.median_errors({name: value[kept] for name, value in captures.items()},
                                        {name: value[kept] for name, value in truth.items()})
    return lines + errors_in_16_bit({name: got[name][kept] for name in truth},
                                    as_arrays({name: truth[name][kept] for name in truth}), medians)


def compare(librarian, trial):
    """("ok" | "refused" | "FAILED", lines that say what is wrong)."""
    truth, routers = run_decided(trial)
    wanted = captures_of(truth) + (",router" if routers else "")
    for type_name in ("f32", trial.half):
        done = extract(librarian, trial, type_name, wanted)
        broken = type_name == "f32" and "gives NaN" in done.stderr  # Which transformers does not.
        if done.returncode in (USAGE, BAD_INPUT) and not broken:
            return "refused", [done.stderr.strip().replace(f"{trial.folder}/", "")]
        if done.returncode != 0:
            return "FAILED", [f"exit code {done.returncode}: {done.stderr.strip()}"]
        got = read_store(trial.folder / type_name)
        if type_name == "f32":
            wrong = errors_in_routers(got, routers) + errors_in_f32(got, as_arrays(truth))
        else:
            wrong = errors_of_half(trial, got, truth, routers)
        if wrong:
            return "FAILED", [f"{type_name} {line}" for line in wrong]
    return "ok", []


def is_chance(librarian, trial, lines):
    """Whether only these weights go over a limit, as few channels or a sum near zero can.

    An error in the program shows with most weights, or is large in f32.
    """
    if any(line.startswith("exit") for line in lines):
        return False
    large = [line for line in lines if line.startswith("f32") and
             not float(line.rsplit(" ", 1)[1]) < F32_ERROR_CERTAIN]
    failures = 0
    for seed in range(0 if large else REDRAWS):
        redraw_weights(trial, seed)
        failures += compare(librarian, trial)[0] != "ok"
    return not large and failures <= REDRAWS // 2


def try_family(librarian, name, options):
    """All trials of a family; returns how many had each outcome."""
    outcomes = collections.Counter()
    for number in range(options.first, options.first + options.trials):
        with tempfile.TemporaryDirectory() as scratch:
            trial = make_trial(FAMILIES[name], pathlib.Path(scratch) / "trial",
                               options.seed * 100_000 + number)
            outcome, lines = compare(librarian, trial)
            if outcome == "FAILED" and options.keep:
                shutil.copytree(trial.folder, options.keep / f"{name}-{number}", dirs_exist_ok=True)
            if outcome == "FAILED" and is_chance(librarian, trial, lines):
                outcome, lines = "ok", ["by chance, not with other weights: "] + lines
            outcomes[outcome] += 1
            print(f"{outcome:8s}{name} {number}: {'; '.join(lines + trial.facts())}", flush=True)
            if outcome == "FAILED":
                config = json.loads((trial.model / "config.json").read_text())
                print("        " + json.dumps(config, sort_keys=True), flush=True)
    return outcomes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("librarian", help="path of the program")
    parser.add_argument("--families", default="", help="comma-separated; default: all")
    parser.add_argument("--trials", type=int, default=20, help="per family")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=pathlib.Path, help="copy failed trials here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    summary = {}
    for name in [name for name in options.families.split(",") if name] or FAMILIES:
        if make_golden.TRANSFORMERS_MAJOR in FAMILIES[name].transformers and hasattr(
                transformers, FAMILIES[name].config_class):
            summary[name] = try_family(options.librarian, name, options)
    print(f"transformers {transformers.__version__}")
    for name, outcomes in summary.items():
        counts = [f"{outcomes[kind]:4d} {kind}" for kind in ("ok", "refused", "FAILED")]
        print(f"{name:14s}", *counts)
    sys.exit(1 if any(outcomes["FAILED"] for outcomes in summary.values()) else 0)


if __name__ == "__main__":
    main()
