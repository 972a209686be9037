#pragma once
/// The tensor names of every family. Families that name alike share a table.

#include "weightmap/tensor_names.h"

namespace librarian::weightmap {

// NOLINTBEGIN(readability-identifier-naming): constants, constexpr where they are defined.
extern const TensorNames kLlamaNames;     ///< Also qwen, mistral, gemma, granite, cohere, ...
extern const TensorNames kSandwichNames;  ///< gemma2, gemma3: norms before and after each part.
extern const TensorNames kPostNormNames;  ///< olmo2, olmo3, exaone4: after each part only.
extern const TensorNames kPhi3Names;
extern const TensorNames kGlm4Names;
extern const TensorNames kLayerNormNames;  ///< stablelm, nemotron: llama with biases of norms.
extern const TensorNames kStarcoder2Names;
extern const TensorNames kPhiNames;
extern const TensorNames kGptNeoxNames;
extern const TensorNames kFalconNames;
extern const TensorNames kBloomNames;
extern const TensorNames kGpt2Names;
extern const TensorNames kOptNames;
extern const TensorNames kBertNames;
// With experts: family_names_moe.cc.
extern const TensorNames kExpertNames;  ///< qwen2_moe, qwen3_moe, glm4_moe: llama's, mlp.experts.N.
extern const TensorNames kMixtralNames;  ///< Also minimax_m2.
extern const TensorNames kGptOssNames;
extern const TensorNames kGraniteMoeNames;
extern const TensorNames kErnieMoeNames;
extern const TensorNames kHunyuanMoeNames;
extern const TensorNames kLlama4Names;
extern const TensorNames kLatentNames;  ///< deepseek, kimi, glm4_moe_lite, glm_moe_dsa.
// NOLINTEND(readability-identifier-naming)

}  // namespace librarian::weightmap
