#include "activation_store/types.h"

#include <bit>
#include <limits>

namespace librarian::activation_store {
namespace {

constexpr std::uint64_t kMiB = 1U << 20U;

/// False if the product does not fit in 64 bits.
bool multiply(std::uint64_t a, std::uint64_t b, std::uint64_t& product) {
  return !__builtin_mul_overflow(a, b, &product);
}

}  // namespace

std::uint64_t element_bytes(StoredType type) {
  switch (type) {
    case StoredType::bf16:
    case StoredType::f16:
      return 2;
    case StoredType::f32:
    case StoredType::i32:
      return 4;
    case StoredType::f8_e4m3:
      return 1;
  }
  LIB_CHECK(false);
}

const char* stored_type_name(StoredType type) {
  switch (type) {
    case StoredType::bf16:
      return "bfloat16";
    case StoredType::f16:
      return "float16";
    case StoredType::f32:
      return "float32";
    case StoredType::f8_e4m3:
      return "float8_e4m3fn";
    case StoredType::i32:
      return "int32";
  }
  return "unknown";
}

Result<StoredType> parse_stored_type(std::string_view name) {
  for (const StoredType type :
       {StoredType::bf16, StoredType::f16, StoredType::f32, StoredType::f8_e4m3, StoredType::i32}) {
    if (name == stored_type_name(type)) {
      return type;
    }
  }
  return Error(ErrorCode::invalid_argument,
               "not a stored type: '" + std::string(name.substr(0, 64)) + "'");
}

Result<void> check_layout(const ArrayLayout& layout) {
  const auto refuse = [](const char* reason) {
    return Error(ErrorCode::invalid_argument, std::string("array layout: ") + reason);
  };
  if (layout.width == 0 || (layout.is_vector && layout.width != 1)) {
    return refuse("an array needs at least one column, and a vector has just one");
  }
  if (layout.chunk_tokens == 0 || !std::has_single_bit(layout.chunk_tokens)) {
    return refuse("chunk_tokens is not a power of two");
  }
  if (layout.shard_tokens == 0 || layout.shard_tokens % layout.chunk_tokens != 0) {
    return refuse("shard_tokens is not a multiple of chunk_tokens");
  }
  std::uint64_t row = 0;
  std::uint64_t bytes = 0;
  if (!multiply(layout.width, element_bytes(layout.type), row) ||
      !multiply(row, layout.chunk_tokens, bytes) || bytes > kChunkBytesMax) {
    return refuse("a chunk is larger than 256 MiB");
  }
  std::uint64_t raw = 0;
  if (!multiply(row, layout.rows, raw) || !multiply(row, layout.shard_tokens, raw) ||
      layout.rows > std::numeric_limits<std::uint64_t>::max() - layout.shard_tokens) {
    return refuse("its size does not fit in 64 bits");
  }
  return {};
}

std::vector<std::uint64_t> ArrayLayout::shape() const {
  return is_vector ? std::vector<std::uint64_t>{rows} : std::vector<std::uint64_t>{rows, width};
}

std::string scales_name(const std::string& array) { return array + ".scales"; }

std::uint64_t row_bytes(const ArrayLayout& layout) {
  return layout.width * element_bytes(layout.type);
}
std::uint64_t chunk_bytes(const ArrayLayout& layout) {
  return layout.chunk_tokens * row_bytes(layout);
}
std::uint64_t chunk_count(const ArrayLayout& layout) {
  return (layout.rows + layout.chunk_tokens - 1) / layout.chunk_tokens;
}
std::uint64_t shard_count(const ArrayLayout& layout) {
  return (layout.rows + layout.shard_tokens - 1) / layout.shard_tokens;
}

std::uint64_t default_chunk_tokens(std::uint64_t width, StoredType type) {
  // 2^round(log2(1 MiB / row)) without floating point: doubling is nearer while the middle of the
  // two in the logarithm, tokens * sqrt(2), still lies at or below the goal.
  const std::uint64_t row = width * element_bytes(type);
  std::uint64_t tokens = 1;
  if (row > kMiB) {
    return tokens;
  }
  while (tokens < kMiB && 2 * (tokens * row) * (tokens * row) <= kMiB * kMiB) {
    tokens *= 2;
  }
  return tokens;
}

std::uint64_t chunk_tokens_within(std::uint64_t width, StoredType type,
                                  std::uint64_t shard_tokens) {
  std::uint64_t tokens = default_chunk_tokens(width, type);
  while (shard_tokens % tokens != 0) {
    tokens /= 2;
  }
  return tokens;
}

}  // namespace librarian::activation_store
