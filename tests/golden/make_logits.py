"""Adds transformers' own logits to golden folders: logits_f32.safetensors, {logits f32 [tokens, vocabulary]}.

    python make_logits.py [FAMILY ...]      # needs torch, transformers, safetensors, numpy

In float32 from the stored weights, eager attention, each sample alone, as make_golden.py does. Stops if
the last hidden state is not the golden's: then the numbers would be another model's.
"""

import pathlib
import sys

import torch
import transformers
from safetensors.numpy import load_file, save_file

HERE = pathlib.Path(__file__).parent
# One of each way from the last hidden state to logits: head of its own or tied, bias, cap, scale.
FAMILIES = ["llama", "gemma2", "cohere", "granite", "phi", "gpt2", "gpt_neox"]
HIDDEN_ERROR_MAX = 1e-5


def logits_of(family):
    """[tokens, vocabulary] in float32."""
    folder = HERE / family
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32, attn_implementation="eager")
    model.eval()
    tokens = load_file(folder / "tokens.safetensors")
    golden = load_file(folder / "golden_f32.safetensors")["final.post_norm"]
    ids, offsets = torch.tensor(tokens["input_ids"]).long(), tokens["offsets"]
    rows = []
    for begin, end in zip(offsets[:-1], offsets[1:]):
        with torch.no_grad():
            out = model(ids[None, begin:end], output_hidden_states=True, use_cache=False)
        wanted = torch.tensor(golden[begin:end])
        error = ((out.hidden_states[-1][0] - wanted).norm() / wanted.norm()).item()
        if not error <= HIDDEN_ERROR_MAX:
            raise SystemExit(f"{family}: the last hidden state is off by {error:.1e}")
        rows.append(out.logits[0].float())
    return torch.cat(rows).numpy()


def main():
    for family in sys.argv[1:] or FAMILIES:
        logits = logits_of(family)
        save_file({"logits": logits}, HERE / family / "logits_f32.safetensors",
                  metadata={"transformers": transformers.__version__, "torch": torch.__version__})
        print(family, logits.shape)


if __name__ == "__main__":
    main()
