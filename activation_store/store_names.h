#pragma once
/// The grammar of names in a store: what we write, and so all that we may remove or accept.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "activation_store/types.h"

namespace librarian::activation_store {

/// "0", "17": decimal, no leading zero, at most 18 digits.
std::optional<std::uint64_t> parse_decimal(std::string_view text);

/// "x.partial-1f3a" for name "x": a temporary of ours.
bool is_partial_name(std::string_view text, std::string_view name);

/// `part-00007` -> 7. Empty if the name is not one that part_directory_name() gives.
std::optional<std::uint64_t> parse_part_directory_name(std::string_view name);

/// True for relative paths of plain names ([A-Za-z0-9._-]+, not "." or "..") joined by '/'.
bool is_safe_relative_path(std::string_view path);

/// `<path>.partial-<nonce>`
std::string partial_path(const std::string& path, const std::string& nonce);

/// Path of a shard below its array's directory: "c/3/0", or "c/3" of a vector.
std::string shard_path(const ArrayLayout& layout, std::uint64_t shard);

/// "tokens/rows_loss", "tokens/rows_m4_m1": a token array that says which rows other arrays keep.
bool is_rows_path(std::string_view path);

}  // namespace librarian::activation_store
