#pragma once
/// The layer in double precision, written the obvious way: the truth that tests compare with.

#include <cstdint>
#include <vector>

#include "tests/gpu_exec/exec_testing.h"

namespace librarian::gpu_exec {

using Rows = std::vector<std::vector<double>>;

Rows to_rows(const std::vector<float>& values, std::size_t width);
/// |actual - expected| / |expected|, the largest over rows.
double worst_row_error(const std::vector<float>& actual, const Rows& expected);

Rows reference_linear(const Rows& x, const std::vector<float>& weight,
                      const std::vector<float>* bias, std::size_t outputs);
/// @param bias  Null: none. Weights are multiplied as NormSpec::one_plus says.
Rows reference_norm(const Rows& x, const std::vector<float>& weight, const std::vector<float>* bias,
                    const NormSpec& spec);
/// Whether the query at position i sees the key at position j.
bool reference_sees(const AttentionSpec& spec, std::size_t i, std::size_t j);
/// q [rows, heads * head_dim], k [rows, kv_heads * head_dim], v [rows, kv_heads * value_dim] of one
/// sample.
/// @param sinks  [heads], or null.
Rows reference_attention(const Rows& q, const Rows& k, const Rows& v, const AttentionSpec& spec,
                         const std::vector<float>* sinks = nullptr);
/// One row of it.
std::vector<double> reference_attention_row(std::size_t i, const Rows& q, const Rows& k,
                                            const Rows& v, const AttentionSpec& spec,
                                            const std::vector<float>* sinks = nullptr);
/// Norm (if `weight` or without weights) and rotation of each head, positions from 0.
Rows reference_rotate(Rows x, std::uint32_t heads, const AttentionSpec& spec,
                      const std::vector<float>* weight, const NormSpec& norm);

struct ReferenceLayer {
  Rows attn_out, resid_mid, mlp_out, resid_post;
  std::vector<std::vector<std::int32_t>> experts;  ///< Of each row, best first.
  Rows expert_weights;
};
/// One sample through the layer.
ReferenceLayer reference_layer(const TestLayer& layer, const Rows& x);

}  // namespace librarian::gpu_exec
