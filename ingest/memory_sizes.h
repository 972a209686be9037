#pragma once
/// The parts of a memory plan that no choice of the plan changes, computed once: a checkpoint can
/// have hundreds of thousands of tensors. Private to ingest.

#include <cstdint>

#include "ingest/memory_plan.h"

namespace librarian::ingest {

/// What writing arrays takes beside the weights and the state.
struct WritingSizes {
  std::uint64_t arrays = 0;           ///< In all.
  std::uint64_t arrays_per_step = 0;  ///< Most that are written at the same time.
  std::uint64_t bytes_per_step = 0;   ///< Most that their writers and sinks take.
  std::uint64_t chunk_bytes_max = 0;
};

struct MemorySizes {
  std::uint64_t layer_bytes = 0;  ///< Of the largest layer's slots in the ring.
  std::uint64_t piece_bytes = 0;  ///< Largest piece that is fetched at once.
  std::uint64_t table_bytes = 0;  ///< Tokens, tensor table and the records of journal and manifest.
  WritingSizes writing;
};
MemorySizes memory_sizes(const MemoryInputs& in);

/// Of the state.
std::uint64_t state_row_bytes(const MemoryInputs& in);

}  // namespace librarian::ingest
