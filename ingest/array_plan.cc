#include "ingest/array_plan.h"

#include <algorithm>

#include "ingest/stored_type.h"

namespace librarian::ingest {
namespace {

using activation_store::ArrayLayout;
using activation_store::StoredType;

std::string rows_path(const Positions& positions) {
  return positions.kind == Positions::Kind::all ? "" : "tokens/" + positions.rows_name();
}

/// An array whose rows are not of the hidden size: chunks by its own width.
PlannedArray narrow_array(const std::string& name, StoredType type, std::uint64_t width,
                          bool is_vector, const Positions& positions,
                          const ArrayGeometry& geometry) {
  PlannedArray array;
  array.name = name;
  array.positions = positions;
  array.attributes.rows = rows_path(positions);
  ArrayLayout& layout = array.layout;
  layout.width = width;
  layout.type = type;
  layout.codec = geometry.codec;
  layout.shard_tokens = geometry.shard_tokens;
  layout.chunk_tokens = activation_store::chunk_tokens_within(width, type, geometry.shard_tokens);
  layout.is_vector = is_vector;
  return array;
}

void add_logits(const LogitsTopk& logits, const ArrayGeometry& geometry,
                std::vector<PlannedArray>& arrays) {
  const auto add = [&](const char* name, StoredType type, std::uint64_t width, bool is_vector) {
    arrays.push_back(narrow_array(std::string(kLogitsTopk) + "." + name, type, width, is_vector,
                                  logits.positions, geometry));
  };
  add("ids", StoredType::i32, logits.k, false);
  add("log_prob", StoredType::f16, logits.k, false);
  add("logsumexp", StoredType::f32, 1, true);
  add("gold_log_prob", StoredType::f32, 1, true);
}

/// @param capture  "blocks.N.router"
void add_router(const std::string& capture, std::uint32_t top_k, const Positions& positions,
                const ArrayGeometry& geometry, std::vector<PlannedArray>& arrays) {
  for (const auto& [name, type] :
       {std::pair(".ids", StoredType::i32), std::pair(".weights", StoredType::f32)}) {
    arrays.push_back(narrow_array(capture + name, type, top_k, false, positions, geometry));
    arrays.back().rows_as_stored = true;
  }
}

std::string router_capture(std::int32_t layer) {
  return "blocks." + std::to_string(layer) + "." + kRouter;
}

}  // namespace

std::vector<PlannedArray> planned_arrays(const CaptureList& captures, const ArrayGeometry& geometry,
                                         std::int32_t layer) {
  std::vector<PlannedArray> arrays;
  if (const auto router = captures.routers.find(layer); router != captures.routers.end()) {
    const std::string name = router_capture(layer);
    add_router(name, router->second, captures.options_of(name).positions, geometry, arrays);
  }
  for (const std::string& name : captures.arrays_of(layer)) {
    const ArrayOptions options = captures.options_of(name);
    PlannedArray array;
    array.name = name;
    array.positions = options.positions;
    array.attributes = {rows_path(options.positions), options.keep_mantissa_bits};
    array.layout.width = geometry.hidden_size;
    array.layout.type = options.fp8 ? StoredType::f8_e4m3 : stored_type(geometry.dtype);
    array.layout.codec = geometry.codec;
    array.layout.chunk_tokens = geometry.chunk_tokens;
    array.layout.shard_tokens = geometry.shard_tokens;
    arrays.push_back(std::move(array));
    if (options.fp8) {
      arrays.push_back(narrow_array(activation_store::scales_name(name), StoredType::f32, 1, true,
                                    options.positions, geometry));
    }
  }
  if (captures.logits && layer == static_cast<std::int32_t>(captures.layers.size())) {
    add_logits(*captures.logits, geometry, arrays);
  }
  return arrays;
}

std::vector<PlannedArray> planned_arrays(const CaptureList& captures,
                                         const ArrayGeometry& geometry) {
  std::vector<PlannedArray> all;
  for (std::int32_t layer = -1; layer <= captures.last_layer(); ++layer) {
    const std::vector<PlannedArray> some = planned_arrays(captures, geometry, layer);
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

std::uint64_t logits_row_bytes(std::uint32_t k) {
  std::vector<PlannedArray> arrays;
  add_logits({k, {}}, {.shard_tokens = 1}, arrays);
  std::uint64_t bytes = 0;
  for (const PlannedArray& array : arrays) {
    bytes += activation_store::row_bytes(array.layout);
  }
  return bytes;
}

std::map<std::string, std::map<std::string, std::string>> array_groups(
    const CaptureList& captures) {
  std::map<std::string, std::map<std::string, std::string>> groups;
  if (captures.logits) {
    for (const char* const name : {"ids", "log_prob", "logsumexp", "gold_log_prob"}) {
      groups[kLogitsTopk][name] = std::string(kLogitsTopk) + "." + name;
    }
  }
  for (const auto& [layer, top_k] : captures.routers) {
    for (const char* const name : {"ids", "weights"}) {
      const std::string capture = router_capture(layer);
      groups[capture][name] = capture + "." + name;
    }
  }
  return groups;
}

}  // namespace librarian::ingest
