#include "weightmap/request_plan.h"

#include <algorithm>

#include "gpu_exec/topk.h"

namespace librarian::weightmap {

std::vector<Piece> plan_pieces(const LayerPlan& layer, std::uint64_t table_piece_bytes) {
  std::vector<Piece> pieces;
  for (std::uint32_t i = 0; i < layer.tensors.size(); ++i) {
    const WeightTensor& tensor = layer.tensors[i];
    std::uint64_t step = tensor.bytes.size();
    if (tensor.key.role == gpu_exec::WeightRole::embedding) {
      const std::uint64_t row_bytes = tensor.columns * gpu_exec::dtype_bytes(tensor.dtype);
      step = std::max<std::uint64_t>(table_piece_bytes / row_bytes, 1) * row_bytes;
    }
    if (tensor.key.role == gpu_exec::WeightRole::head) {
      step = gpu_exec::kVocabularyTile * tensor.columns * gpu_exec::dtype_bytes(tensor.dtype);
    }
    for (std::uint64_t at = tensor.bytes.begin; at < tensor.bytes.end; at += step) {
      pieces.push_back({i, {at, std::min(at + step, tensor.bytes.end)}});
    }
  }
  return pieces;
}

std::uint64_t largest_piece_bytes(const Checkpoint& checkpoint, std::uint64_t table_piece_bytes) {
  std::uint64_t largest = 0;
  for (std::int32_t layer = kEmbeddingLayer; layer <= checkpoint.layer_count(); ++layer) {
    for (const Piece& piece : plan_pieces(checkpoint.layer(layer), table_piece_bytes)) {
      largest = std::max(largest, piece.bytes.size());
    }
  }
  return largest;
}

}  // namespace librarian::weightmap
