#pragma once
/// What a row of the embedding table becomes before layer 0: norm(word * multiplier + position +
/// type). On the host and in one portable arithmetic, whatever device runs the layers.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"
#include "gpu_exec/model_spec.h"

namespace librarian::gpu_exec {

/// Not thread-safe.
class EmbeddingStage {
 public:
  /// @param rows_max  Longest sample: as many positions are kept.
  EmbeddingStage(const ModelSpec& model, DType dtype, std::uint64_t rows_max);
  /// What load() and finish() allocate.
  static std::uint64_t memory_bytes(const ModelSpec& model, std::uint64_t rows_max);

  /// Takes one of embedding_roles() except the table itself.
  /// @error invalid_argument  the size does not fit the shape.
  Result<void> load(WeightRole role, DType type, std::span<const std::byte> bytes);

  /// Rounds once, to `dtype`; sums in f64. Every other role must have been loaded.
  /// @param word  [hidden] of `type`, the token's row of the table.
  /// @param out   [hidden] of the stage's dtype.
  void finish(DType type, std::span<const std::byte> word, std::uint64_t position,
              std::span<std::byte> out);

 private:
  void normalise();

  const ModelSpec& model_;
  DType dtype_;
  std::uint64_t rows_max_;
  float multiplier_;
  std::vector<float> positions_;  // [rows_max, hidden]
  std::vector<float> type_;       // [hidden]
  std::vector<float> norm_;       // [hidden]
  std::vector<float> norm_bias_;  // [hidden]
  std::vector<float> row_;        // [hidden]
};

}  // namespace librarian::gpu_exec
