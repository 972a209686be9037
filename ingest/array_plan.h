#pragma once
/// The arrays that a job writes: names, layouts and what becomes of a tensor's rows on the way.
/// Pure arithmetic.

#include <cstdint>
#include <string>
#include <vector>

#include "activation_store/types.h"
#include "gpu_exec/model_spec.h"
#include "ingest/capture_list.h"

namespace librarian::ingest {

/// What all arrays of a job share.
struct ArrayGeometry {
  gpu_exec::DType dtype{};
  activation_store::Codec codec{};
  std::uint64_t hidden_size = 0;
  std::uint64_t chunk_tokens = 0;  ///< Of arrays of the hidden size.
  std::uint64_t shard_tokens = 0;  ///< Of every array.
};

/// One array on disk. `layout.rows` is 0: it depends on the part.
struct PlannedArray {
  std::string name;
  activation_store::ArrayLayout layout;
  activation_store::ArrayAttributes attributes;
  Positions positions;
  /// Of what step's rows come in: of the compute type, or as they are stored.
  bool rows_as_stored = false;
};

/// What step `layer` writes: the arrays of its router, then for each tensor of
/// CaptureList::arrays_of() its array, and behind it that of its scales where it is fp8; behind
/// those of the last step the arrays of logits.topk.
std::vector<PlannedArray> planned_arrays(const CaptureList& captures, const ArrayGeometry& geometry,
                                         std::int32_t layer);
/// The same over all steps.
std::vector<PlannedArray> planned_arrays(const CaptureList& captures,
                                         const ArrayGeometry& geometry);

/// Bytes of one row of all arrays of logits.topk.
std::uint64_t logits_row_bytes(std::uint32_t k);

/// The captures that are more than one array: the name of each -> its arrays by their short names,
/// e.g. "logits.topk" -> "ids" -> "logits.topk.ids".
std::map<std::string, std::map<std::string, std::string>> array_groups(const CaptureList& captures);

}  // namespace librarian::ingest
