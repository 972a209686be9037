"""How try_families.py draws the config of families with mixtures of experts.

Their samples and stacks are short: in 16 bits a token that meets another expert makes all behind it
incomparable, and in float32 no choice of experts may be close (make_golden.MARGIN_MIN).
"""

import make_golden
from family_draws import (
    ANY_ROPE, FLAG, GATED_ACTS, PLAIN_ROPE, Family, one_window, own_head_dim, partial_rope, rope,
    unsaid_head_dim, windows)
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as deepseek_v2

LONGEST_SAMPLE = 40
EXPERT_COUNTS = (2, 3, 4, 5, 6, 8, 8, 8, 12, 16)
EXPERT_WIDTHS = (8, 12, 20, 33)
SCALINGS = (0.5, 1.0, 1.8, 2.5, 16.0)
SELECT_BIAS = r"e_score_correction_bias$"


def mixture(config_class, options, more, **fields):
    """A family with experts; its options hold sizes under the family's own keys."""
    return Family(config_class, options, (few_layers, *more), longest_sample=LONGEST_SAMPLE,
                  **fields)


def few_layers(draw):
    draw.config["num_hidden_layers"] = draw.random.choice((1, 2, 2, 3, 3, 4))


def experts(count_key, chosen_key, width_key=None, counts=EXPERT_COUNTS):
    """How many there are and how many a token meets, from one to all of them, and how wide."""
    def apply(draw):
        count = draw.random.choice(counts)
        draw.config[count_key] = count
        draw.config[chosen_key] = min(draw.random.choice((1, 2, 2, 3, 4, count)), count)
        if width_key:
            draw.config[width_key] = draw.random.choice(EXPERT_WIDTHS)
    return apply


LOCAL = experts("num_local_experts", "num_experts_per_tok")
OWN_WIDTH = experts("num_experts", "num_experts_per_tok", "moe_intermediate_size")
ROUTED = experts("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")


def groups(draw):
    """Groups of at least two experts, of which a token sees enough for all it is to meet."""
    count, chosen = draw.config["n_routed_experts"], draw.config["num_experts_per_tok"]
    if draw.random.random() < 0.15 and count == 16 and 4 <= chosen <= 8:
        for key in ("n_group", "topk_group"):
            draw.config.pop(key, None)  # 8 and 4 in DeepSeek-V3's class, 1 and 1 in others.
        return
    groups_of(draw, [n for n in range(1, count // 2 + 1) if count % n == 0] or [1])


def groups_of(draw, numbers):
    """One of these numbers of groups; a token sees enough of them, and none for nothing."""
    count, chosen = draw.config["n_routed_experts"], draw.config["num_experts_per_tok"]
    number = draw.random.choice(numbers)
    enough = -(-chosen * number // count)
    draw.config.update(n_group=number,
                       topk_group=draw.random.randint(enough, min(number, chosen)))


def groups_by_method(draw):
    """DeepSeek-V2: only one of its two methods knows groups, which may hold one expert each."""
    draw.maybe(0.8, topk_method=("greedy", "group_limited_greedy"))
    if draw.config.get("topk_method") == "group_limited_greedy":
        count = draw.config["n_routed_experts"]
        groups_of(draw, [n for n in range(1, count + 1) if count % n == 0])
    else:
        draw.maybe(0.4, n_group=(1, 8), topk_group=(1, 3))  # Without meaning then.


def dense_first(draw):
    """The first few layers without experts, seldom all of them."""
    half = draw.layers // 2
    draw.maybe(0.9, first_k_dense_replace=(0, 0, 0, half, half, draw.layers - 1, draw.layers))


def dense_listed(draw):
    """Transformers 5 lists the kind of each layer; without the list the class knows it."""
    if draw.random.random() < 0.9:
        draw.config["mlp_layer_types"] = [
            draw.random.choice(("dense", "sparse", "sparse", "sparse")) for _ in range(draw.layers)]


def dense_between(draw):
    """Qwen: every so many layers, less those that are listed."""
    draw.maybe(0.5, decoder_sparse_step=(1, 2, 3))
    if draw.random.random() < 0.4:
        draw.config["mlp_only_layers"] = draw.random.sample(
            range(draw.layers), draw.random.randint(0, draw.layers))


def dense_outside(draw):
    """Ernie: a range of layers, and every so many of them."""
    draw.maybe(0.7, moe_layer_start_index=range(draw.layers))
    first = draw.config.get("moe_layer_start_index", 1)
    draw.maybe(0.6, moe_layer_end_index=(-1, *range(first, draw.layers)))
    draw.maybe(0.4, moe_layer_interval=(1, 2, 3))


def dense_or_turning(draw):
    """Llama 4: which layers have experts, and which have no rope, as a list, a step or neither."""
    way = draw.random.choice(("list", "step", "class"))
    if way == "list":
        draw.config["moe_layers"] = sorted(draw.random.sample(
            range(draw.layers), draw.random.randint(0, draw.layers)))
    elif way == "step":
        draw.config["interleave_moe_layer_step"] = draw.random.choice((1, 2, 3))
    way = draw.random.choice(("list", "list", "step", "class"))
    if way == "list":
        draw.config["no_rope_layers"] = [draw.random.choice((0, 1)) for _ in range(draw.layers)]
    elif way == "step":
        draw.config["no_rope_layer_interval"] = draw.random.choice((1, 2, 3))


def latent(draw):
    """Latent attention: its ranks, and three sizes of a head."""
    pick = draw.random.choice
    draw.config.update(
        num_key_value_heads=draw.config["num_attention_heads"], kv_lora_rank=pick((4, 16, 33)),
        q_lora_rank=pick((None, 8, 20)), qk_nope_head_dim=pick((4, 10, 16)),
        qk_rope_head_dim=pick((2, 4, 8, 16)), v_head_dim=pick((6, 10, 16, 32)))


def no_mscale_of_all(draw):
    """DeepSeek-V2: up to transformers 5.8 its class leaves this out, against DeepSeek's own code."""
    scaling = draw.config.get("rope_scaling")
    if scaling and not hasattr(deepseek_v2, "yarn_apply_mscale"):
        scaling.pop("mscale_all_dim", None)


def index(draw):
    """An index of keys that leaves out none of samples this short; it needs a latent of queries."""
    draw.config["q_lora_rank"] = draw.random.choice((8, 20))
    draw.config.update(index_head_dim=draw.config["qk_rope_head_dim"] + draw.random.choice((0, 4)))
    draw.maybe(0.7, index_topk=(LONGEST_SAMPLE, 64), index_n_heads=(1, 2))


def lists_of_hunyuan(draw):
    """The published configs give one number for each layer."""
    if draw.random.random() < 0.5:
        draw.config["moe_topk"] = [draw.config["moe_topk"]] * draw.layers


def stretched_theta(draw):
    """Hunyuan: a rope that is called dynamic, and of which nothing depends on the sample.

    In transformers 4 it does beyond max_position_embeddings, against the model's own code.
    """
    if draw.random.random() < 0.5:
        draw.config["rope_scaling"] = {
            "type": "dynamic", "alpha": draw.random.choice((7.5, 1000.0)), "factor": 1.0}
        draw.config["max_position_embeddings"] = 4096


def no_scaling(draw):
    """GPT-OSS has a rope of its own if nothing is said; to transformers 4 a null is no scaling."""
    draw.maybe(0.2, rope_scaling=(None,))


def rope_of_a_part(draw):
    """MiniMax: transformers knows the part that turns only in here."""
    if draw.random.random() < 0.8:
        even = [f for f in (0.25, 0.5, 0.75, 1.0) if draw.head_dim * f % 2 == 0]
        draw.config["rope_parameters"] = {
            "rope_type": "default", "rope_theta": draw.random.choice((1e4, 5e6)),
            "partial_rotary_factor": draw.random.choice(even)}


def multimodal(draw):
    """The text config of Llama 4 inside a multimodal one, as all that is published has it."""
    draw.config = dict(text_config=draw.config, vision_config=VISION)


def published_words(draw):
    """Keys of the published configs that transformers has no use for."""
    draw.maybe(0.3, scoring_func=("sigmoid",), topk_method=("noaux_tc",), moe_layer_freq=(1,),
               ep_size=(1,), num_nextn_predict_layers=(0,))


SIGMOID = dict(hidden_act=GATED_ACTS, norm_topk_prob=FLAG, routed_scaling_factor=SCALINGS,
               n_shared_experts=(1, 2), attention_bias=FLAG)
VISION = dict(make_golden.VISION, vision_output_dim=8, projector_input_dim=8,
              projector_output_dim=8)
LLAMA4 = dict(
    hidden_act=GATED_ACTS, attention_bias=FLAG, use_qk_norm=FLAG, attn_temperature_tuning=FLAG,
    attn_scale=(0.1, 0.5), floor_scale=(4, 16, 8192), attention_chunk_size=(3, 8, 16, 8192),
    intermediate_size_mlp=(20, 33))
LLAMA4_STEPS = (LOCAL, own_head_dim, rope("llama3", "linear"), dense_or_turning)
MULTIPLIERS = dict(embedding_multiplier=(0.5, 12.0), residual_multiplier=(0.22, 1.5),
                   attention_multiplier=(0.05, 0.3), logits_scaling=(8.0,))
FAMILIES = {
    "mixtral": mixture("MixtralConfig", dict(hidden_act=GATED_ACTS),
                       (LOCAL, own_head_dim, ANY_ROPE, one_window)),
    "qwen2_moe": mixture("Qwen2MoeConfig", dict(
        hidden_act=GATED_ACTS, qkv_bias=FLAG, norm_topk_prob=FLAG,
        shared_expert_intermediate_size=(12, 33), sliding_window=(3, 8), max_window_layers=(0, 28)),
        (OWN_WIDTH, ANY_ROPE, dense_between)),
    "qwen3_moe": mixture("Qwen3MoeConfig", dict(
        hidden_act=GATED_ACTS, attention_bias=FLAG, norm_topk_prob=FLAG),
        (OWN_WIDTH, own_head_dim, ANY_ROPE, dense_between)),
    "gpt_oss": mixture("GptOssConfig", {}, (
        LOCAL, own_head_dim, rope("yarn", "linear"), no_scaling, windows)),
    "granitemoe": mixture("GraniteMoeConfig", dict(
        MULTIPLIERS, hidden_act=GATED_ACTS, attention_bias=FLAG),
        (LOCAL, unsaid_head_dim, ANY_ROPE)),
    "ernie4_5_moe": mixture("Ernie4_5_MoeConfig", dict(
        hidden_act=GATED_ACTS, moe_num_shared_experts=(0, 1, 2), moe_norm_min=(1e-12, 0.3, 0.9)),
        (experts("moe_num_experts", "moe_k", "moe_intermediate_size"), unsaid_head_dim,
         rope("linear", "yarn"), dense_outside),
        wide=rf"{SELECT_BIAS}|mlp\.gate\.weight$"),
    "hunyuan_v1_moe": mixture("HunYuanMoEV1Config", dict(
        hidden_act=GATED_ACTS, attention_bias=FLAG),
        (experts("num_experts", "moe_topk", counts=(1, *EXPERT_COUNTS)), own_head_dim, PLAIN_ROPE,
         stretched_theta, lists_of_hunyuan), wide=r"gate\.wg\.weight$"),
    "minimax_m2": mixture("MiniMaxM2Config", dict(hidden_act=GATED_ACTS),
                          (LOCAL, own_head_dim, rope_of_a_part), wide=SELECT_BIAS,
                          transformers=(5,)),
    "llama4_text": mixture("Llama4TextConfig", LLAMA4, LLAMA4_STEPS),
    "llama4": mixture("Llama4Config", LLAMA4, (*LLAMA4_STEPS, multimodal),
                      auto_classes=("AutoModelForImageTextToText",)),
    "glm4_moe": mixture("Glm4MoeConfig", dict(SIGMOID, use_qk_norm=FLAG), (
        ROUTED, own_head_dim, partial_rope("partial_rotary_factor"), PLAIN_ROPE, groups,
        dense_first, published_words), wide=SELECT_BIAS),
    "deepseek_v2": mixture("DeepseekV2Config", dict(
        hidden_act=GATED_ACTS, routed_scaling_factor=SCALINGS, n_shared_experts=(1, 2),
        attention_bias=FLAG), (
            ROUTED, latent, rope("yarn", "linear"), no_mscale_of_all, groups_by_method,
            dense_first)),
    "deepseek_v3": mixture("DeepseekV3Config", dict(SIGMOID, rope_interleave=FLAG), (
        ROUTED, latent, rope("yarn", "yarn", "linear", "llama3"), groups, dense_first,
        published_words), wide=SELECT_BIAS),
    # Not in every transformers 5.
    "deepseek_v32": mixture("DeepseekV32Config", SIGMOID, (
        ROUTED, latent, index, rope("yarn", "yarn", "linear"), groups, dense_first,
        published_words), wide=SELECT_BIAS, transformers=(5,)),
    "glm4_moe_lite": mixture("Glm4MoeLiteConfig", dict(SIGMOID, rope_interleave=FLAG), (
        ROUTED, latent, rope("yarn"), groups, dense_listed, published_words), wide=SELECT_BIAS,
        transformers=(5,)),
    # Transformers 5.8 turns its heads by halves, against the model's own code; 5.23 does not.
    "glm_moe_dsa": mixture("GlmMoeDsaConfig", SIGMOID, (
        ROUTED, latent, index, rope("yarn"), groups, dense_first, dense_listed, published_words),
        wide=SELECT_BIAS, transformers=(5,)),
}
