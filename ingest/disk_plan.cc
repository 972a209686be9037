#include "ingest/disk_plan.h"

namespace librarian::ingest {
namespace {

/// Lossless ratios that byte planes with entropy coding reach on activations (FORMAT.md); the low
/// end, because the plan must not promise room that is not there.
double expected_ratio(activation_store::StoredType type, activation_store::Codec codec) {
  if (codec == activation_store::Codec::none) {
    return 1.0;
  }
  return type == activation_store::StoredType::bf16 ? 1.40 : 1.15;
}

}  // namespace

DiskPlan plan_disk(const DiskInputs& inputs) {
  DiskPlan plan;
  plan.expected_ratio = expected_ratio(inputs.type, inputs.codec);
  const std::uint64_t rows_bytes = inputs.tokens * inputs.row_bytes * inputs.arrays;
  plan.raw_bytes = rows_bytes + inputs.logit_bytes;
  plan.store_bytes =
      static_cast<std::uint64_t>(static_cast<double>(rows_bytes) / plan.expected_ratio) +
      inputs.logit_bytes;
  const std::uint64_t state_bytes = inputs.part_tokens_max * inputs.row_bytes;
  // A new state is durable before the one before goes.
  plan.scratch_peak_bytes = inputs.uncovered_layers == 0 ? 0 : 2 * state_bytes;
  plan.skeleton_bytes = inputs.skeleton_bytes;
  plan.peak_bytes = plan.store_bytes + plan.scratch_peak_bytes + plan.skeleton_bytes;
  plan.written_bytes =
      plan.store_bytes + plan.skeleton_bytes +
      (inputs.state_in_memory ? 0 : inputs.tokens * inputs.row_bytes * inputs.uncovered_layers);
  return plan;
}

}  // namespace librarian::ingest
