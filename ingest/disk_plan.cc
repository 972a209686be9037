#include "ingest/disk_plan.h"

namespace librarian::ingest {
namespace {

/// Lossless ratios that byte planes with entropy coding reach on activations (FORMAT.md); the low
/// end, because the plan must not promise room that is not there.
double lossless_ratio(activation_store::StoredType type) {
  switch (type) {
    case activation_store::StoredType::bf16:
      return 1.40;
    case activation_store::StoredType::i32:
      return 1.50;  // Token ids leave a byte of four empty.
    case activation_store::StoredType::f16:
    case activation_store::StoredType::f32:
    case activation_store::StoredType::f8_e4m3:
      return 1.15;
  }
  return 1.0;
}

double expected_ratio(const DiskArray& array, activation_store::Codec codec) {
  if (codec == activation_store::Codec::none) {
    return 1.0;
  }
  const double ratio = lossless_ratio(array.type);
  if (array.keep_mantissa_bits == 0) {
    return ratio;
  }
  // The bits of the mantissa are noise, each of which costs a bit; those that went cost nothing.
  const double bits = 8.0 * static_cast<double>(activation_store::element_bytes(array.type));
  const double mantissa = array.type == activation_store::StoredType::bf16  ? 7
                          : array.type == activation_store::StoredType::f16 ? 10
                                                                            : 23;
  return bits / (bits / ratio - (mantissa - static_cast<double>(array.keep_mantissa_bits)));
}

}  // namespace

DiskPlan plan_disk(const DiskInputs& inputs) {
  DiskPlan plan;
  plan.arrays = inputs.arrays;
  for (DiskArray& array : plan.arrays) {
    const std::uint64_t raw = array.rows * array.row_bytes;
    array.store_bytes =
        static_cast<std::uint64_t>(static_cast<double>(raw) / expected_ratio(array, inputs.codec));
    plan.raw_bytes += raw;
    plan.store_bytes += array.store_bytes;
  }
  if (plan.store_bytes != 0) {
    plan.expected_ratio =
        static_cast<double>(plan.raw_bytes) / static_cast<double>(plan.store_bytes);
  }
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
