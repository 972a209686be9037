// Goal: a tensor's name says exactly one thing, and a name we do not know is never taken for one.
// Method: round trip over every role, and a table of names that look alike.
#include "weightmap/tensor_names.h"

#include <gtest/gtest.h>

namespace librarian::weightmap {
namespace {

using gpu_exec::WeightRole;
using Kind = NamedTensor::Kind;

TEST(TensorNames, GoThereAndBackForEveryRole) {
  for (const std::string prefix : {"model.", ""}) {
    for (int role = 0; role <= static_cast<int>(WeightRole::final_norm); ++role) {
      const auto weight_role = static_cast<WeightRole>(role);
      for (const std::int32_t layer : {0, 9, 10, 79}) {
        const std::string name = tensor_name(prefix, layer, weight_role);
        const NamedTensor named = classify_tensor(name, prefix, 80);
        ASSERT_EQ(named.kind, Kind::weight) << name;
        EXPECT_EQ(named.role, weight_role) << name;
        EXPECT_EQ(named.layer, weight_role == WeightRole::embedding    ? -1
                               : weight_role == WeightRole::final_norm ? 80
                                                                       : layer)
            << name;
      }
    }
  }
  EXPECT_EQ(tensor_name("model.", 12, WeightRole::down_weight),
            "model.layers.12.mlp.down_proj.weight");
}

// Catches: prefix matches, sloppy layer numbers, a catch-all for "unused".
TEST(TensorNames, ThatLookAlikeAreUnknown) {
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
           "model.lm_head.weight",
           "score.weight",
           "model.rotary_emb.inv_freq_x",
           "transformer.wte.weight",
       }) {
    EXPECT_EQ(classify_tensor(name, "model.", 4).kind, Kind::unknown) << name;
  }
}

TEST(TensorNames, ThatNoForwardPassNeedsAreUnused) {
  for (const char* name : {"lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq",
                           "model.rotary_emb.inv_freq", "model.layers.3.self_attn.masked_bias"}) {
    EXPECT_EQ(classify_tensor(name, "model.", 4).kind, Kind::unused) << name;
  }
}

}  // namespace
}  // namespace librarian::weightmap
