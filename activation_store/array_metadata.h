#pragma once
/// zarr.json of an array: written from a layout and accepted only if it says exactly what would be
/// written for that layout, so that no reader of ours meets a variant it was not tested with.

#include <cstdint>
#include <string>
#include <string_view>

#include "activation_store/types.h"
#include "base/error.h"
#include "base/json.h"

namespace librarian::activation_store {

/// Sealed zarr.json of a capture array. @param layout  Passed check_layout() and, with
/// `attributes`, check_attributes().
std::string array_metadata_text(const std::string& name, const ArrayLayout& layout,
                                const ArrayAttributes& attributes = {});

/// That attributes can be those of such an array: no rows only where they are chosen, mantissas of
/// 3 to 6 bits of types that have more. @error invalid_argument
Result<void> check_attributes(const ArrayLayout& layout, const ArrayAttributes& attributes);

struct ArrayMetadata {
  std::string capture;  ///< Attribute `capture`: the array's name.
  ArrayLayout layout;
  ArrayAttributes attributes;
};
/// @param what  Names the file in errors.
/// @error corrupt  The seal does not fit, or the document is not one we write.
Result<ArrayMetadata> parse_array_metadata(std::string_view text, const std::string& what);

/// A one-dimensional array of integers below tokens/.
struct TokenArrayLayout {
  std::string dtype;                    ///< "int32", "int64" or "uint8".
  std::uint64_t length = 0;             ///< 0 only of rows that an array keeps.
  std::uint64_t chunk_length() const;   ///< min(length, 1 Mi), at least 1
  std::uint64_t element_bytes() const;  ///< 4, 8 or 1
  /// -1 for signed integers and 255 for bytes: all bits set, so one byte value fills both.
  static constexpr std::byte kFillByte{0xFF};
};
std::string token_array_metadata_text(const TokenArrayLayout& layout);
/// @error corrupt  As parse_array_metadata().
Result<TokenArrayLayout> parse_token_array_metadata(std::string_view text, const std::string& what);

/// Sealed zarr.json of a group with these attributes.
std::string group_metadata_text(Json attributes);
/// Attributes of a sealed group. @error corrupt
Result<Json> parse_group_metadata(std::string_view text, const std::string& what);

/// No zarr.json of an array is larger.
inline constexpr std::uint64_t kArrayMetadataBytesMax = 64U << 10U;

}  // namespace librarian::activation_store
