#include "ingest/topk_arrays.h"

#include "ingest/capture_list.h"

namespace librarian::ingest {

std::string topk_array_name(const TopkArray& array) {
  return std::string(kLogitsTopk) + "." + array.short_name;
}

std::uint64_t topk_stored_bytes(std::uint32_t k) {
  std::uint64_t bytes = 0;
  for (const TopkArray& array : kTopkArrays) {
    bytes += activation_store::element_bytes(array.type) * (array.is_vector ? 1 : k);
  }
  return bytes;
}

activation_store::ArrayLayout topk_layout(const TopkArray& array, std::uint64_t rows,
                                          std::uint32_t k, activation_store::Codec codec,
                                          std::uint64_t shard_tokens) {
  activation_store::ArrayLayout layout;
  layout.rows = rows;
  layout.width = array.is_vector ? 1 : k;
  layout.type = array.type;
  layout.codec = codec;
  layout.chunk_tokens =
      activation_store::chunk_tokens_within(layout.width, array.type, shard_tokens);
  layout.shard_tokens = shard_tokens;
  layout.is_vector = array.is_vector;
  return layout;
}

}  // namespace librarian::ingest
