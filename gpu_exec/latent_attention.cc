#include "gpu_exec/latent_attention.h"

#include <algorithm>

#include "gpu_exec/step_runner.h"

namespace librarian::gpu_exec {
namespace {

/// A bias that no latent layer has.
constexpr WeightRole kNoBias = WeightRole::q_bias;

}  // namespace

/// x = x / rms(x) * weight for the block's rows of a latent. Its weights are never 1 + weight.
void StepRunner::latent_norm(const Work& work, std::byte* x, std::uint64_t rank,
                             WeightRole weight) {
  NormOp op;
  op.x = x;
  op.y = x;
  op.dtype = options_.dtype;
  op.rows = work.block.rows;
  op.width = rank;
  op.weight = work.weights.vector(weight);
  op.epsilon = layer_->attention.latent.epsilon;
  device_.norm(op);
}

/// wide = output of all heads.
Result<void> StepRunner::attend_latent(const Work& work, const std::byte* input) {
  const AttentionSpec& spec = layer_->attention;
  const LatentSpec& latent = spec.latent;
  const std::uint64_t width = model_.hidden_size;
  const std::uint64_t kv_row = work.block.segments[0].position;  // Behind the tiles before.
  std::byte* const latents = arena_ + plan_.values + kv_row * latent.kv_rank * element_bytes();
  std::byte* const turning =
      arena_ + plan_.shared_keys + kv_row * latent.rope_dim * element_bytes();
  Matrix queries{WeightRole::q_weight, kNoBias, width};
  const std::byte* queries_from = input;
  if (latent.q_rank != 0) {
    std::byte* const rows = arena_ + plan_.query_latents;
    LIB_TRY_VOID(multiply(work, {WeightRole::q_a_weight, WeightRole::q_a_bias, width},
                          {0, latent.q_rank}, input, rows, latent.q_rank));
    latent_norm(work, rows, latent.q_rank, WeightRole::q_a_norm);
    queries = {WeightRole::q_b_weight, kNoBias, latent.q_rank};
    queries_from = rows;
  }
  const Matrix kv_a{WeightRole::kv_a_weight, WeightRole::kv_a_bias, width};
  LIB_TRY_VOID(multiply(work, kv_a, {0, latent.kv_rank}, input, latents, latent.kv_rank));
  LIB_TRY_VOID(multiply(work, kv_a,
                        {latent.kv_rank, std::uint64_t{latent.kv_rank} + latent.rope_dim}, input,
                        turning, latent.rope_dim));
  latent_norm(work, latents, latent.kv_rank, WeightRole::kv_a_norm);
  const RopeTable table = prepare_rope_table(work.block, spec.rope);
  RotateOp turn = rotate_op(work, turning, 1, table);
  turn.head_dim = latent.rope_dim;
  device_.rotate(turn, scratch());

  const std::uint64_t step = latent_tile_heads(spec);
  for (std::uint64_t head = 0; head < spec.heads; head += step) {
    LIB_TRY_VOID(attend_latent_heads(work, {head, std::min<std::uint64_t>(head + step, spec.heads)},
                                     queries, queries_from, table));
  }
  return {};
}

/// Columns of `wide`: output of some heads.
Result<void> StepRunner::attend_latent_heads(const Work& work, Range heads, const Matrix& queries,
                                             const std::byte* queries_from,
                                             const RopeTable& table) {
  const AttentionSpec& spec = layer_->attention;
  const LatentSpec& latent = spec.latent;
  const std::uint64_t count = heads.end - heads.begin;
  const std::uint64_t head_width = latent_head_width(latent);
  // Of the sample's tiles before, and the block's.
  const std::uint64_t kv_rows = work.block.segments[0].position + work.block.rows;
  std::byte* const q = arena_ + plan_.queries;
  std::byte* const expanded = arena_ + plan_.keys;
  LIB_TRY_VOID(multiply(work, queries, {heads.begin * spec.head_dim, heads.end * spec.head_dim},
                        queries_from, q, count * spec.head_dim));
  LIB_TRY_VOID(multiply_rows(work, kv_rows, {WeightRole::kv_b_weight, kNoBias, latent.kv_rank},
                             {heads.begin * head_width, heads.end * head_width},
                             arena_ + plan_.values, expanded, count * head_width));
  RotateOp turn = rotate_op(work, q, static_cast<std::uint32_t>(count), table);
  turn.rotary_begin = latent.nope_dim;
  set_temperature(turn);
  device_.rotate(turn, scratch());

  AttentionOp op = attention_op(work);
  op.q = q;
  op.y = work.at.wide + heads.begin * latent.value_dim * element_bytes();
  op.y_stride = std::uint64_t{spec.heads} * latent.value_dim;
  op.k = expanded;
  op.v = expanded + latent.nope_dim * element_bytes();
  op.k_strides = op.v_strides = {count * head_width, head_width};
  op.k_shared = arena_ + plan_.shared_keys;
  op.shared_dim = latent.rope_dim;
  op.value_dim = latent.value_dim;
  op.heads = op.kv_heads = static_cast<std::uint32_t>(count);
  op.sinks = op.sinks == nullptr ? nullptr : op.sinks + heads.begin;
  op.slopes = op.slopes == nullptr ? nullptr : op.slopes + heads.begin;
  device_.attention(op, scratch(), work.stop);
  return unless_stopped(work.stop);
}

}  // namespace librarian::gpu_exec
