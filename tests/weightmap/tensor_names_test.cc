// Goal: a tensor's name says exactly one thing, and a name we do not know is never taken for one.
// Method: round trip over every row of every table, published names by hand, and a table of names
// that look alike.
#include "weightmap/tensor_names.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "weightmap/family.h"

namespace librarian::weightmap {
namespace {

using gpu_exec::WeightRole;
using Kind = NamedTensor::Kind;

NameScheme scheme_of(const char* model_type) { return {find_family(model_type)->names, false}; }

TEST(TensorNames, GoThereAndBackForEveryRoleOfEveryFamily) {
  for (const Family* family : families()) {
    const NameScheme scheme{family->names, false};
    for (const std::string_view prefix : family->names->prefixes) {
      for (const RoleName& row : family->names->outside) {
        const std::string name = std::string(prefix).append(row.name);
        const NamedTensor named = classify_tensor(name, scheme, prefix, 80);
        EXPECT_EQ(named.kind, Kind::weight) << name;
        EXPECT_EQ(named.key.role, row.role) << name;
        const bool last =
            row.role == WeightRole::final_norm || row.role == WeightRole::final_norm_bias;
        EXPECT_EQ(named.layer, last ? 80 : -1) << name;
      }
      for (const RoleName& row : family->names->inside) {
        for (const std::int32_t layer : {0, 9, 10, 79}) {
          std::string name = tensor_name(scheme, prefix, layer, row.role);
          name = name.substr(0, name.find('['));  // The tensor that an expert's is a part of.
          const NamedTensor named = classify_tensor(name, scheme, prefix, 80);
          EXPECT_EQ(named.kind, Kind::weight) << name;
          EXPECT_EQ(named.key.role, row.role) << name;
          EXPECT_EQ(named.layer, layer) << name;
        }
      }
    }
  }
}

// Catches: one name for two roles, which would hide a tensor behind another.
TEST(TensorNames, AreUniqueWithinAFamily) {
  for (const Family* family : families()) {
    for (const auto& rows : {family->names->outside, family->names->inside}) {
      std::set<std::string_view> names;
      for (const RoleName& row : rows) {
        EXPECT_TRUE(names.insert(row.name).second) << family->model_type << " " << row.name;
      }
    }
  }
}

// Catches: a family that asks for a role which its table cannot name; tensor_name() would stop.
TEST(TensorNames, CoverEveryRoleThatTheFamilyMayAskFor) {
  for (const Family* family : families()) {
    gpu_exec::ModelSpec model;
    model.norm = family->norm;
    model.embedding.positions = family->embedding.positions ? 1 : 0;
    model.embedding.types = family->embedding.types;
    model.embedding.norm = family->embedding.norm;
    model.final_norm = family->final_norm;
    const NameScheme scheme{family->names, false};
    std::vector<WeightRole> roles = gpu_exec::embedding_roles(model);
    std::vector<LayerForm> forms{family->layer};
    if (family->parallel.key != nullptr) {
      forms.push_back(family->parallel_layer);
    }
    for (const LayerForm& form : forms) {
      gpu_exec::LayerSpec layer;
      layer.attention_norm = form.attention_norm;
      layer.attention_out_norm = form.attention_out_norm;
      layer.mlp_norm = form.mlp_norm;
      layer.mlp_out_norm = form.mlp_out_norm;
      layer.attention.storage = family->attention.storage;
      layer.attention.qkv_bias = family->attention.qkv_bias.key || family->attention.qkv_bias.value;
      layer.attention.out_bias = family->attention.out_bias.key || family->attention.out_bias.value;
      layer.attention.qk_norm = family->attention.qk_norm;
      layer.mlp.gated = family->mlp.gated;
      layer.mlp.fused = family->mlp.fused;
      layer.mlp.bias = family->mlp.bias.key || family->mlp.bias.value;
      if (std::string(family->model_type) == "falcon") {
        layer.attention.storage = gpu_exec::QkvStorage::grouped;
      }
      layer.attention.sinks = family->attention.sinks;
      layer.attention.latent.kv_rank = family->latent.kv_rank;
      layer.attention.latent.bias = true;
      for (const std::uint32_t q_rank : {0U, family->latent.q_rank}) {
        layer.attention.latent.q_rank = q_rank;
        const auto latent = gpu_exec::weight_roles(model, layer);
        roles.insert(roles.end(), latent.begin(), latent.end());
      }
      const MoeForm& moe = family->moe;
      if (moe.experts != 0) {
        if (moe.layers == SparseRule::all) {
          roles.clear();  // No layer has an MLP.
        }
        layer.moe.experts = moe.experts;
        layer.moe.fused = moe.fused;
        layer.moe.bias = layer.moe.router_bias = moe.bias;
        layer.moe.select_bias = moe.select_bias;
        layer.moe.shared_width = moe.shared == SharedRule::none ? 0 : 1;
        layer.moe.shared_gate = moe.shared_gate;
      }
      const auto more = gpu_exec::weight_roles(model, layer);
      roles.insert(roles.end(), more.begin(), more.end());
    }
    const auto last = gpu_exec::final_roles(model);
    roles.insert(roles.end(), last.begin(), last.end());
    for (const WeightRole role : roles) {
      const auto named = [&](const RoleName& row) { return row.role == role; };
      if (std::none_of(family->names->outside.begin(), family->names->outside.end(), named) &&
          std::none_of(family->names->inside.begin(), family->names->inside.end(), named)) {
        ADD_FAILURE() << family->model_type << " " << gpu_exec::weight_role_name(role);
        continue;
      }
      EXPECT_FALSE(tensor_name(scheme, "", 0, role).empty())
          << family->model_type << " " << gpu_exec::weight_role_name(role);
    }
  }
}

struct PublishedName {
  const char* model_type;
  const char* name;
  WeightRole role;
  std::int32_t layer;
};

// One name per peculiarity, as in published checkpoints.
TEST(TensorNames, OfPublishedCheckpointsAreKnown) {
  for (const PublishedName& row : {
           PublishedName{"llama", "model.layers.12.mlp.down_proj.weight", WeightRole::down_weight,
                         12},
           {"gemma2", "model.layers.3.post_attention_layernorm.weight",
            WeightRole::attention_out_norm, 3},
           {"gemma2", "model.layers.3.pre_feedforward_layernorm.weight", WeightRole::mlp_norm, 3},
           {"olmo2", "model.layers.0.post_feedforward_layernorm.weight", WeightRole::mlp_out_norm,
            0},
           {"llama", "model.layers.0.post_attention_layernorm.weight", WeightRole::mlp_norm, 0},
           {"glm4", "model.layers.0.post_self_attn_layernorm.weight",
            WeightRole::attention_out_norm, 0},
           {"phi3", "model.layers.0.self_attn.qkv_proj.weight", WeightRole::qkv_weight, 0},
           {"phi", "model.final_layernorm.bias", WeightRole::final_norm_bias, 80},
           {"gpt_neox", "gpt_neox.layers.5.attention.query_key_value.bias", WeightRole::qkv_bias,
            5},
           {"gpt2", "h.11.attn.c_attn.weight", WeightRole::qkv_weight, 11},
           {"gpt2", "wpe.weight", WeightRole::position_embedding, -1},
           {"falcon", "transformer.h.0.ln_attn.weight", WeightRole::attention_norm, 0},
           {"falcon", "transformer.h.0.input_layernorm.weight", WeightRole::attention_norm, 0},
           {"bloom", "word_embeddings_layernorm.bias", WeightRole::embedding_norm_bias, -1},
           {"opt", "model.decoder.layers.0.final_layer_norm.weight", WeightRole::mlp_norm, 0},
           {"mixtral", "model.layers.5.block_sparse_moe.experts.7.w3.weight",
            WeightRole::expert_up_weight, 5},
           {"qwen2_moe", "model.layers.5.mlp.shared_expert_gate.weight", WeightRole::shared_router,
            5},
           {"gpt_oss", "model.layers.5.mlp.experts.down_proj_bias", WeightRole::expert_down_bias,
            5},
           {"deepseek_v3", "model.layers.60.mlp.gate.e_score_correction_bias",
            WeightRole::router_select_bias, 60},
           {"deepseek_v3", "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
            WeightRole::kv_a_weight, 0},
           {"ernie4_5_moe", "model.layers.3.mlp.moe_statics.e_score_correction_bias",
            WeightRole::router_select_bias, 3},
           {"hunyuan_v1_moe", "model.layers.3.mlp.gate.wg.weight", WeightRole::router_weight, 3},
           {"granitemoe", "model.layers.3.block_sparse_moe.input_linear.weight",
            WeightRole::expert_gate_up_weight, 3},
           {"llama4_text", "model.layers.3.feed_forward.experts.gate_up_proj",
            WeightRole::expert_gate_up_weight, 3},
           {"opt", "model.decoder.final_layer_norm.weight", WeightRole::final_norm, 80},
           {"bert", "bert.embeddings.LayerNorm.gamma", WeightRole::embedding_norm, -1},
           {"bert", "bert.encoder.layer.2.output.LayerNorm.beta", WeightRole::mlp_out_norm_bias, 2},
           {"bert", "bert.encoder.layer.2.attention.output.LayerNorm.weight",
            WeightRole::attention_out_norm, 2},
       }) {
    const NameScheme scheme = scheme_of(row.model_type);
    bool found = false;
    for (const std::string_view prefix : scheme.family->prefixes) {
      const NamedTensor named = classify_tensor(row.name, scheme, prefix, 80);
      if (named.kind == Kind::weight) {
        found = true;
        EXPECT_EQ(named.key.role, row.role) << row.name;
        EXPECT_EQ(named.layer, row.layer) << row.name;
      }
    }
    EXPECT_TRUE(found) << row.name;
  }
}

TEST(TensorNames, OfExpertsHaveTheExpertsNumber) {
  const auto named = [](const char* name) {
    return classify_tensor(std::string("model.layers.1.block_sparse_moe.") + name,
                           scheme_of("mixtral"), "model.", 4);
  };
  EXPECT_EQ(named("experts.0.w1.weight").key, gpu_exec::WeightKey(WeightRole::expert_gate_weight));
  EXPECT_EQ(named("experts.127.w2.weight").key,
            gpu_exec::WeightKey(WeightRole::expert_down_weight, 127));
  for (const char* name :
       {"experts.01.w1.weight", "experts.-1.w1.weight", "experts.+1.w1.weight", "experts.w1.weight",
        "experts..w1.weight", "experts. 1.w1.weight", "experts.1.w1.weight.1", "experts.1w1.weight",
        "experts.1.w1", "experts.{}.w1.weight", "experts.4294967296.w1.weight",
        "experts.99999999999999999999.w1.weight", "experts.1.w4.weight", "experts.0x1.w1.weight"}) {
    EXPECT_EQ(named(name).kind, Kind::unknown) << name;
  }
  const NamedTensor all =
      classify_tensor("model.layers.1.mlp.experts.gate_up_proj", scheme_of("gpt_oss"), "model.", 4);
  EXPECT_TRUE(all.all_experts);
  EXPECT_EQ(tensor_name(scheme_of("gpt_oss"), "model.", 1, {WeightRole::expert_gate_up_weight, 3}),
            "model.layers.1.mlp.experts.gate_up_proj[3]");
}

// Catches: a layer that predicts further tokens taken for a mistake, or a mistake for one.
TEST(TensorNames, OfLayersBeyondTheLastAreUnusedIfTheConfigCountsThem) {
  NameScheme scheme = scheme_of("deepseek_v3");
  constexpr const char* kName = "model.layers.4.anything.at.all";
  EXPECT_EQ(classify_tensor(kName, scheme, "model.", 4).kind, Kind::unknown);
  scheme.layers_beyond = 1;
  EXPECT_EQ(classify_tensor(kName, scheme, "model.", 4).kind, Kind::unused);
  EXPECT_EQ(classify_tensor(kName, scheme, "model.", 3).kind, Kind::unknown);
}

// Catches: prefix matches, sloppy layer numbers, a catch-all for "unused".
TEST(TensorNames, ThatLookAlikeAreUnknown) {
  const NameScheme llama = scheme_of("llama");
  for (const char* name : {
           "",
           "model.",
           "model.layers",
           "model.layers.",
           "model.layers.0",
           "model.layers.0.",
           "model.layers..input_layernorm.weight",
           "model.layers.-1.input_layernorm.weight",
           "model.layers.+1.input_layernorm.weight",
           "model.layers. 1.input_layernorm.weight",
           "model.layers.01.input_layernorm.weight",
           "model.layers.00.input_layernorm.weight",
           "model.layers.0x1.input_layernorm.weight",
           "model.layers.1e0.input_layernorm.weight",
           "model.layers.4.input_layernorm.weight",
           "model.layers.4294967296.input_layernorm.weight",
           "model.layers.99999999999999999999.input_layernorm.weight",
           "model.layers.0input_layernorm.weight",
           "model.layers.0.input_layernorm.weight ",
           "model.layers.0.input_layernorm",
           "model.layers.0.input_layernorm.bias",
           "model.layers.0.self_attn.q_proj.weight_scale",
           "model.layers.0.self_attn.q_proj.qweight",
           "model.layers.0.self_attn.qkv_proj.weight",
           "model.layers.0.mlp.experts.0.up_proj.weight",
           "model.layers.0.post_feedforward_layernorm.weight",
           "layers.0.input_layernorm.weight",
           "model.model.layers.0.input_layernorm.weight",
           "Model.layers.0.input_layernorm.weight",
           "model.embed_tokens.bias",
           "model.embed_tokens.weight.0",
           "embed_tokens.weight",
           "model.norm.bias",
           "norm.weight",
           "lm_head.bias",
           "lm_head",
           "model.lm_head.weight",
           "model.rotary_emb.inv_freq_x",
           "model.layers.0.attention.bias",
           "transformer.wte.weight",
           "vision_tower.layers.0.weight",
           "multi_modal_projector.linear.weight",
       }) {
    EXPECT_EQ(classify_tensor(name, llama, "model.", 4).kind, Kind::unknown) << name;
  }
}

TEST(TensorNames, ThatNoForwardPassNeedsAreUnused) {
  const std::pair<const char*, const char*> rows[] = {
      {"llama", "model.layers.0.self_attn.rotary_emb.inv_freq"},
      {"llama", "model.rotary_emb.inv_freq"},
      {"llama", "model.layers.3.self_attn.masked_bias"},
      {"gpt_neox", "gpt_neox.layers.0.attention.bias"},
      {"gpt_neox", "gpt_neox.layers.0.attention.masked_bias"},
      {"gpt2", "transformer.h.0.attn.bias"},
      {"bert", "bert.embeddings.position_ids"},
      {"glm_moe_dsa", "model.layers.3.self_attn.indexer.wq_b.weight"},
      {"ernie4_5_moe", "model.mtp_block.0.self_attn.q_proj.weight"},
      {"minimax_m2", "model.mtp.layers.0.x.weight"},
      {"deepseek_v3", "model.layers.0.self_attn.k_scale"},
  };
  for (const auto& [model_type, name] : rows) {
    const NameScheme scheme = scheme_of(model_type);
    EXPECT_EQ(classify_tensor(name, scheme, scheme.family->prefixes.front(), 4).kind, Kind::unused)
        << name;
  }
}

TEST(TensorNames, OfHeadsAreHeads) {
  const std::pair<const char*, const char*> rows[] = {
      {"llama", "lm_head.weight"},
      {"llama", "score.weight"},
      {"phi", "lm_head.bias"},
      {"gpt_neox", "embed_out.weight"},
      {"bert", "cls.predictions.transform.dense.weight"},
      {"bert", "bert.pooler.dense.bias"},
      {"bert", "classifier.weight"},
  };
  for (const auto& [model_type, name] : rows) {
    const NameScheme scheme = scheme_of(model_type);
    EXPECT_EQ(classify_tensor(name, scheme, scheme.family->prefixes.front(), 4).kind, Kind::head)
        << name;
  }
  const NameScheme multimodal{find_family("gemma3_text")->names, true};
  for (const char* name : {"language_model.lm_head.weight", "lm_head.weight"}) {
    EXPECT_EQ(classify_tensor(name, multimodal, "language_model.model.", 4).kind, Kind::head)
        << name;
  }
}

TEST(TensorNames, AreFoundUnderTheCheckpointsPrefix) {
  const auto prefix = [](const NameScheme& scheme, std::vector<std::string_view> names) {
    return base_prefix(scheme, names);
  };
  const NameScheme llama = scheme_of("llama");
  EXPECT_EQ(prefix(llama, {"lm_head.weight", "model.embed_tokens.weight"}), "model.");
  EXPECT_EQ(prefix(llama, {"norm.weight", "embed_tokens.weight"}), "");
  EXPECT_EQ(prefix(llama, {"language_model.model.embed_tokens.weight"}), "model.") << "not ours";
  EXPECT_EQ(prefix(llama, {}), "model.");
  EXPECT_EQ(prefix(scheme_of("gpt2"), {"wte.weight"}), "");
  EXPECT_EQ(prefix(scheme_of("opt"), {"decoder.embed_tokens.weight"}), "decoder.");
  EXPECT_EQ(prefix(scheme_of("bert"), {"bert.embeddings.word_embeddings.weight"}), "bert.");
  const NameScheme gemma3{find_family("gemma3_text")->names, true};
  for (const char* usual :
       {"model.language_model.", "language_model.model.", "language_model.", "model.", ""}) {
    const std::string embedding = std::string(usual) + "embed_tokens.weight";
    EXPECT_EQ(prefix(gemma3, {"a.embed_tokens", embedding}), usual);
  }
}

TEST(TensorNames, OfOtherPartsOfAMultimodalModelAreUnused) {
  const NameScheme scheme{find_family("gemma3_text")->names, true};
  for (const char* name : {"vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
                           "model.vision_tower.patch.weight", "model.visual.blocks.0.norm.weight",
                           "multi_modal_projector.mm_input_projection_weight",
                           "model.multi_modal_projector.linear_1.weight"}) {
    EXPECT_EQ(classify_tensor(name, scheme, "language_model.model.", 4).kind, Kind::unused) << name;
  }
  EXPECT_EQ(classify_tensor("audio_tower.x", scheme, "language_model.model.", 4).kind,
            Kind::unknown);
}

}  // namespace
}  // namespace librarian::weightmap
