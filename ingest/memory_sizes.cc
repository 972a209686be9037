#include "ingest/memory_sizes.h"

#include <algorithm>

#include "gpu_exec/embedding.h"
#include "gpu_exec/topk.h"
#include "ingest/array_plan.h"
#include "ingest/capture_sink.h"
#include "weightmap/host_ring.h"
#include "weightmap/request_plan.h"

namespace librarian::ingest {
namespace {

constexpr std::uint64_t kBytesPerTensorEntry = 512;
constexpr std::uint64_t kBytesPerFileRecord = 256;

std::uint64_t largest_layer_bytes(const weightmap::Checkpoint& checkpoint) {
  std::uint64_t largest = 0;
  for (std::int32_t layer = 0; layer <= checkpoint.layer_count(); ++layer) {
    std::uint64_t bytes = 0;
    for (const weightmap::WeightTensor& tensor : checkpoint.layer(layer).tensors) {
      // The head goes tile by tile: one arrives while the one before is taken.
      const std::uint64_t most =
          tensor.key.role == gpu_exec::WeightRole::head
              ? 2 * gpu_exec::kVocabularyTile * tensor.columns * gpu_exec::dtype_bytes(tensor.dtype)
              : ~std::uint64_t{0};
      bytes += weightmap::HostRing::slot_bytes(std::min(tensor.bytes.size(), most));
    }
    largest = std::max(largest, bytes);
  }
  return largest;
}

WritingSizes writing_of(const MemoryInputs& in) {
  const ArrayGeometry geometry{in.dtype, in.codec, in.checkpoint->spec().hidden_size,
                               in.chunk_tokens, in.shard_tokens};
  WritingSizes writing;
  // A state on disk is read back by chunks of this size, also where no array is kept that way.
  writing.chunk_bytes_max = in.chunk_tokens * state_row_bytes(in);
  for (std::int32_t layer = -1; layer <= in.captures->last_layer(); ++layer) {
    std::uint64_t arrays = 0;
    std::uint64_t bytes = 0;
    for (PlannedArray& array : planned_arrays(*in.captures, geometry, layer)) {
      array.layout.rows = in.part_tokens_max;
      ++arrays;
      bytes += activation_store::ArrayWriter::memory_bytes(array.layout) +
               CaptureSink::memory_bytes(array, in.dtype);
      writing.chunk_bytes_max =
          std::max(writing.chunk_bytes_max, activation_store::chunk_bytes(array.layout));
    }
    writing.arrays += arrays;
    writing.arrays_per_step = std::max(writing.arrays_per_step, arrays);
    writing.bytes_per_step = std::max(writing.bytes_per_step, bytes);
  }
  return writing;
}

std::uint64_t table_bytes(const MemoryInputs& in, const WritingSizes& writing) {
  std::uint64_t tensors = 0;
  std::uint64_t quantised = 0;  // Scales and the like of one layer.
  for (std::int32_t layer = weightmap::kEmbeddingLayer; layer <= in.checkpoint->layer_count();
       ++layer) {
    tensors += in.checkpoint->layer(layer).tensors.size();
    quantised = std::max(quantised, in.checkpoint->layer(layer).table_bytes());
  }
  const std::uint64_t shards = (in.part_tokens_max + in.shard_tokens - 1) / in.shard_tokens;
  const std::uint64_t files = writing.arrays * (shards + 1);
  // A part's tokens are copied once while they are written.
  const std::uint64_t part_copy = in.part_tokens_max * 2 * sizeof(std::int64_t) + in.kept_row_bytes;
  // While the embedding runs: what is added to its rows, and the position of each.
  const std::uint64_t embedding =
      gpu_exec::EmbeddingStage::memory_bytes(in.checkpoint->spec(), in.sample_tokens_max) +
      in.part_tokens_max * sizeof(std::uint32_t);
  return in.token_bytes + in.kept_row_bytes + std::max(part_copy, embedding) + quantised +
         tensors * kBytesPerTensorEntry + files * kBytesPerFileRecord;
}

}  // namespace

std::uint64_t state_row_bytes(const MemoryInputs& in) {
  return in.checkpoint->spec().hidden_size * gpu_exec::dtype_bytes(in.dtype);
}

MemorySizes memory_sizes(const MemoryInputs& in) {
  MemorySizes sizes;
  sizes.layer_bytes = largest_layer_bytes(*in.checkpoint);
  sizes.piece_bytes = weightmap::largest_piece_bytes(*in.checkpoint, kTablePieceBytes);
  sizes.writing = writing_of(in);
  sizes.table_bytes = table_bytes(in, sizes.writing);
  return sizes;
}

}  // namespace librarian::ingest
