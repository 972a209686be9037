"""How try_families.py draws the config of each family: the parts, and the families without experts.

Those with experts are in expert_draws.py.
"""

import random
from dataclasses import dataclass, field

import make_golden

FLAG = (False, True)
THETAS = (500.0, 10000.0, 1e6)
GATED_ACTS = ("silu",) * 6 + ("gelu", "gelu_pytorch_tanh", "relu")
PLAIN_ACTS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "silu", "gelu_fast")
EPSILONS = (1e-6, 1e-5, 1e-3)


@dataclass(frozen=True)
class Family:
    """How to draw one family: `options` are choices per key, `more` what depends on other keys."""

    config_class: str
    options: dict = field(default_factory=dict)
    more: tuple = ()
    auto_classes: tuple = ("AutoModelForCausalLM",) * 4 + ("AutoModel",)
    longest_sample: int = 90
    learned_positions: bool = False  # Samples are then no longer than max_position_embeddings.
    block_tokens: tuple = (8, 16, 32)
    transformers: tuple = (4, 5)
    wide: str = ""  # Pattern of tensors that may be stored as float32, as make_golden has them.


@dataclass
class Draw:
    """A config under construction."""

    random: random.Random
    config: dict

    @property
    def layers(self):
        return self.config["num_hidden_layers"]

    @property
    def head_dim(self):
        return self.config.get("head_dim") or (
            self.config["hidden_size"] // self.config["num_attention_heads"])

    def maybe(self, chance, **keys):
        """Set keys to one of the values given for each, with a probability."""
        if self.random.random() < chance:
            self.config.update({key: self.random.choice(values) for key, values in keys.items()})


def sizes(draw):
    """Sizes that every family has; hidden is a multiple of the heads."""
    pick = draw.random.choice
    heads = pick((1, 2, 3, 4, 4, 6, 8))
    head_dim = pick((4, 8, 8, 12, 16, 24, 32)) if heads < 8 else pick((4, 8, 12))
    divisors = [n for n in range(1, heads + 1) if heads % n == 0]
    draw.config.update(
        hidden_size=heads * head_dim, num_attention_heads=heads,
        num_key_value_heads=pick(divisors + [1, heads]), num_hidden_layers=pick((1, 2, 3, 4, 6)),
        intermediate_size=pick((20, 33, 64, 100)), vocab_size=pick((17, 40, 131)),
        max_position_embeddings=pick((16, 40, 64, 4096)), pad_token_id=0, bos_token_id=1,
        eos_token_id=2)
    for key in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"):
        draw.maybe(0.7, **{key: EPSILONS})
    draw.maybe(0.6, tie_word_embeddings=FLAG)


def own_head_dim(draw):
    """A head_dim that is not hidden / heads, and sometimes an odd hidden size or the default's."""
    draw.maybe(0.6, head_dim=(4, 6, 8, 16, 20, 34))
    if draw.config.get("head_dim") and draw.random.random() < 0.5:
        heads = draw.config["num_attention_heads"]
        draw.config["hidden_size"] = heads * draw.random.choice((17, 21, 24))


def unsaid_head_dim(draw):
    """A head_dim in a family whose config class has none, but whose code looks for it."""
    if draw.random.random() < 0.15:
        own_head_dim(draw)


def class_heads(draw):
    """Seldom: leave the heads to the class default, as some published configs do."""
    if draw.random.random() < 0.06:
        for key in ("num_attention_heads", "num_key_value_heads", "head_dim"):
            draw.config.pop(key, None)
        draw.config.update(hidden_size=64, num_hidden_layers=2, num_attention_heads=...)


def rope(*kinds):
    """rope_theta and rope_scaling of these kinds; the type under its old or its new key."""
    def apply(draw):
        draw.maybe(0.7, rope_theta=THETAS)
        kind = draw.random.choice(kinds + ("default",))
        if kind != "default":
            scaling = ROPES[kind](draw)
            scaling[draw.random.choice(("rope_type", "rope_type", "type"))] = kind
            draw.config["rope_scaling"] = scaling
    return apply


def some_of(draw, required, **optional):
    """The required keys, and each of the optional ones with a value half of the time."""
    return {**required, **{key: draw.random.choice(values) for key, values in optional.items()
                           if draw.random.random() < 0.5}}


def yarn(draw):
    return some_of(draw, {"factor": draw.random.choice((1.0, 2.0, 4.0, 40.0))},
                   original_max_position_embeddings=(8, 16, 4096), attention_factor=(0.7, 1.3),
                   beta_fast=(4.0, 32), beta_slow=(0.5, 1), mscale=(0.7, 1.0),
                   mscale_all_dim=(0.5, 1.0), truncate=FLAG)


def llama3(draw):
    return dict(factor=draw.random.choice((2.0, 8.0)), low_freq_factor=1.0,
                high_freq_factor=draw.random.choice((2.0, 4.0)),
                original_max_position_embeddings=draw.random.choice((16, 64, 8192)))


def factors(draw):
    """The lists of longrope, one number for each pair of rotated channels."""
    pairs = int(draw.head_dim * draw.config.get("partial_rotary_factor", 1.0)) // 2
    return {key: [round(1 + draw.random.random() * top, 3) for _ in range(pairs)]
            for key, top in (("short_factor", 0.5), ("long_factor", 9.0))}


def longrope(draw):
    draw.maybe(0.6, original_max_position_embeddings=(8, 16, 32))
    return some_of(draw, {**factors(draw), "factor": draw.random.choice((1.0, 4.0))},
                   attention_factor=(0.8, 1.2))


ROPES = {"linear": lambda draw: {"factor": draw.random.choice((2.0, 8.0))},
         "dynamic": lambda draw: {"factor": draw.random.choice((2.0, 4.0))},
         "yarn": yarn, "llama3": llama3, "longrope": longrope}
ANY_ROPE = rope("default", "linear", "dynamic", "yarn", "llama3", "longrope")
LINEAR_ROPE = rope("default", "linear")
PLAIN_ROPE = rope()


def windows(draw):
    """A window, and for most configs which layers have it."""
    draw.config["sliding_window"] = draw.random.choice((1, 3, 8, 33, 500))
    if draw.random.random() < 0.6:
        draw.config["layer_types"] = [
            draw.random.choice(("sliding_attention", "full_attention")) for _ in range(draw.layers)]


def pattern_windows(draw):
    """The same for a family that also knows the older way to say it."""
    windows(draw)
    if "layer_types" not in draw.config:
        draw.maybe(0.6, sliding_window_pattern=(1, 2, 3))


def one_window(draw):
    draw.maybe(0.7, sliding_window=(None, 1, 3, 8, 33, 500))


def qwen_windows(draw):
    draw.maybe(0.6, use_sliding_window=FLAG, sliding_window=(1, 3, 8, 33),
               max_window_layers=(0, 1, 2, 28))


def partial_rope(*names):
    """A fraction of an even number of channels."""
    def apply(draw):
        even = [f for f in (0.25, 0.5, 0.75, 1.0) if draw.head_dim * f % 2 == 0]
        draw.config[draw.random.choice(names)] = draw.random.choice(even)
    return apply


def phi3_longrope(draw):
    """Phi-3 knows longrope alone, with these three keys, and two older names of it."""
    if draw.random.random() < 0.6:
        kind = draw.random.choice(("longrope", "longrope", "su", "yarn"))
        draw.config["rope_scaling"] = {"type": kind, **factors(draw)}
        draw.config["original_max_position_embeddings"] = draw.random.choice((8, 16, 32))


def no_rope_layers(draw):
    way = draw.random.choice(("layers", "interval", "class"))
    if way == "layers":
        draw.config["no_rope_layers"] = [draw.random.choice((0, 1)) for _ in range(draw.layers)]
    elif way == "interval":
        draw.config["no_rope_layer_interval"] = draw.random.choice((2, 3))
    draw.maybe(0.5, use_sliding_window=FLAG, sliding_window=(None, 3, 8))


def exaone_windows(draw):
    pattern_windows(draw)
    draw.maybe(0.3, sliding_window=(None,), layer_types=(["full_attention"] * draw.layers,))


def temperature_rope(draw):
    """Ministral 3: rope_parameters with a temperature of q."""
    if draw.random.random() < 0.8:
        draw.config["rope_parameters"] = {
            **some_of(draw, yarn(draw), llama_4_scaling_beta=(0.1, 0.5)), "rope_type": "yarn",
            "rope_theta": draw.random.choice(THETAS),
            "original_max_position_embeddings": draw.random.choice((8, 16))}
        draw.config["rope_parameters"].setdefault("llama_4_scaling_beta", 0.2)


def falcon_kind(draw):
    """The three published kinds of block, and sizes that fit them."""
    heads = draw.config["num_attention_heads"]
    kind = draw.random.choice(("new", "multi_query", "old"))
    if kind == "new":
        draw.config.update(new_decoder_architecture=True,
                           num_kv_heads=draw.config["num_key_value_heads"])
        draw.maybe(0.4, num_ln_in_parallel_attn=(1, 2))
    elif kind == "multi_query":
        draw.maybe(0.5, num_kv_heads=(1, heads))
    else:
        draw.config.update(multi_query=False, num_kv_heads=heads)
        draw.maybe(0.7, parallel_attn=FLAG, alibi=FLAG)
    draw.maybe(0.5, ffn_hidden_size=(20, 33))


def decoder_mlp(draw):
    """GPT-2 and OPT have their own names for the width of the MLP."""
    width = draw.config["intermediate_size"]
    draw.maybe(0.7, n_inner=(width, None))
    draw.config["ffn_dim"] = width
    draw.config["word_embed_proj_dim"] = draw.config["hidden_size"]


def multimodal(draw):
    """The text config of Gemma 3 inside a multimodal one."""
    text = {key: value for key, value in draw.config.items()}
    draw.config.clear()
    draw.config.update(text_config=text, vision_config=make_golden.VISION, mm_tokens_per_image=1)


BIASES = dict(attention_bias=FLAG, mlp_bias=FLAG, hidden_act=GATED_ACTS)
GEMMA3 = dict(attention_bias=FLAG, query_pre_attn_scalar=(24, 100, 256),
              rope_local_base_freq=THETAS)
FAMILIES = {
    "llama": Family("LlamaConfig", BIASES, (own_head_dim, class_heads, ANY_ROPE)),
    "qwen2": Family("Qwen2Config", dict(hidden_act=GATED_ACTS),
                    (unsaid_head_dim, class_heads, ANY_ROPE, qwen_windows)),
    "qwen3": Family("Qwen3Config", dict(attention_bias=FLAG, hidden_act=GATED_ACTS),
                    (own_head_dim, class_heads, ANY_ROPE, qwen_windows)),
    "mistral": Family("MistralConfig", dict(hidden_act=GATED_ACTS),
                      (own_head_dim, class_heads, rope("linear", "llama3", "yarn"), one_window)),
    "ministral3": Family("Ministral3Config", {}, (own_head_dim, temperature_rope, one_window),
                         transformers=(5,)),
    # "gelu" was never meant: transformers 5 reads it as the tanh form, 4.57 takes it literally.
    "gemma": Family("GemmaConfig", dict(
        attention_bias=FLAG,
        hidden_act=("gelu_pytorch_tanh",) + ("gelu",) * (make_golden.TRANSFORMERS_MAJOR > 4)),
        (own_head_dim, class_heads, PLAIN_ROPE)),
    "gemma2": Family("Gemma2Config", dict(
        attention_bias=FLAG, query_pre_attn_scalar=(24, 100, 256),
        attn_logit_softcapping=(None, 1.0, 5.0), final_logit_softcapping=(None, 30.0),
        hidden_activation=("gelu_pytorch_tanh", "gelu")),
        (own_head_dim, class_heads, PLAIN_ROPE, windows)),
    "gemma3_text": Family("Gemma3TextConfig", GEMMA3,
                          (own_head_dim, class_heads, LINEAR_ROPE, pattern_windows)),
    "gemma3": Family("Gemma3Config", GEMMA3, (
        own_head_dim, LINEAR_ROPE, pattern_windows, multimodal),
        auto_classes=("AutoModelForImageTextToText",)),
    "phi3": Family("Phi3Config", dict(hidden_act=GATED_ACTS), (
        partial_rope("partial_rotary_factor"), PLAIN_ROPE, phi3_longrope, one_window)),
    "olmo2": Family("Olmo2Config", dict(attention_bias=FLAG), (unsaid_head_dim, ANY_ROPE)),
    "olmo3": Family("Olmo3Config", dict(attention_bias=FLAG),
                    (rope("linear", "yarn", "llama3"), windows)),
    "cohere": Family("CohereConfig", dict(attention_bias=FLAG, use_qk_norm=FLAG,
                                          logit_scale=(0.1, 1.0)), (ANY_ROPE,)),
    "cohere2": Family("Cohere2Config", dict(attention_bias=FLAG),
                      (own_head_dim, ANY_ROPE, pattern_windows)),
    "granite": Family("GraniteConfig", dict(
        BIASES, embedding_multiplier=(0.5, 12.0), residual_multiplier=(0.22, 1.5),
        attention_multiplier=(0.05, 0.3), logits_scaling=(8.0,)), (unsaid_head_dim, ANY_ROPE)),
    "glm4": Family("Glm4Config", dict(attention_bias=FLAG), (
        own_head_dim, partial_rope("partial_rotary_factor"), PLAIN_ROPE)),
    "smollm3": Family("SmolLM3Config", BIASES, (unsaid_head_dim, ANY_ROPE, no_rope_layers)),
    "seed_oss": Family("SeedOssConfig", dict(BIASES, attention_out_bias=FLAG),
                       (own_head_dim, ANY_ROPE)),
    "exaone4": Family("Exaone4Config", {}, (unsaid_head_dim, ANY_ROPE, exaone_windows)),
    "gpt_neox": Family("GPTNeoXConfig", dict(
        use_parallel_residual=FLAG, attention_bias=FLAG, hidden_act=PLAIN_ACTS,
        rotary_emb_base=(500, 10000)), (partial_rope("rotary_pct"),)),
    "bert": Family("BertConfig", dict(hidden_act=PLAIN_ACTS, type_vocab_size=(1, 2, 3)), (),
                   ("AutoModelForMaskedLM", "AutoModel"), 40, True, block_tokens=(40, 64)),
    "starcoder2": Family("Starcoder2Config", dict(use_bias=FLAG, hidden_act=PLAIN_ACTS),
                         (ANY_ROPE, one_window)),
    "stablelm": Family("StableLmConfig", dict(
        use_qkv_bias=FLAG, use_parallel_residual=FLAG,
        qk_layernorm=FLAG if make_golden.TRANSFORMERS_MAJOR > 4 else (False,)),
        (partial_rope("partial_rotary_factor"), LINEAR_ROPE)),
    "phi": Family("PhiConfig", dict(qk_layernorm=FLAG, hidden_act=PLAIN_ACTS),
                  (partial_rope("partial_rotary_factor"), LINEAR_ROPE)),
    "nemotron": Family("NemotronConfig", dict(
        attention_bias=FLAG, mlp_bias=FLAG, hidden_act=PLAIN_ACTS),
        (own_head_dim, partial_rope("partial_rotary_factor"), PLAIN_ROPE)),
    "falcon": Family("FalconConfig", dict(bias=FLAG, activation=("gelu", "relu")),
                     (falcon_kind, PLAIN_ROPE)),
    "gpt2": Family("GPT2Config", dict(
        activation_function=PLAIN_ACTS, scale_attn_weights=FLAG,
        scale_attn_by_inverse_layer_idx=FLAG), (decoder_mlp,), longest_sample=40,
        learned_positions=True),
    "bloom": Family("BloomConfig", {}),
    "opt": Family("OPTConfig", dict(activation_function=("relu", "gelu"), enable_bias=FLAG),
                  (decoder_mlp,), longest_sample=40, learned_positions=True),
}
