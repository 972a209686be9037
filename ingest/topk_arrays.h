#pragma once
/// The four arrays of `logits.topk`: their names and layouts.

#include <array>
#include <cstdint>
#include <string>

#include "activation_store/types.h"

namespace librarian::ingest {

struct TopkArray {
  const char* short_name;  ///< "ids"
  activation_store::StoredType type;
  bool is_vector;  ///< One number a row, else k.
};
inline constexpr std::array<TopkArray, 4> kTopkArrays{
    TopkArray{"ids", activation_store::StoredType::i32, false},
    TopkArray{"log_prob", activation_store::StoredType::f16, false},
    TopkArray{"logsumexp", activation_store::StoredType::f32, true},
    TopkArray{"gold_log_prob", activation_store::StoredType::f32, true}};

/// "logits.topk.ids"
std::string topk_array_name(const TopkArray& array);
/// Bytes of one row of all four.
std::uint64_t topk_stored_bytes(std::uint32_t k);
/// @param rows  That are kept.
activation_store::ArrayLayout topk_layout(const TopkArray& array, std::uint64_t rows,
                                          std::uint32_t k, activation_store::Codec codec,
                                          std::uint64_t shard_tokens);

}  // namespace librarian::ingest
