#pragma once
/// The header of a `.safetensors` file: which tensor lies where. Pure parsing, no I/O: every byte
/// comes from a stranger and is checked before it decides anything.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap {

inline constexpr std::uint64_t kHeaderPrefixBytes = 8;         ///< Little-endian u64 length.
inline constexpr std::uint64_t kHeaderBytesMax = 100'000'000;  ///< As the reference reader's.
inline constexpr std::size_t kTensorsPerFileMax = 262'144;
inline constexpr std::size_t kTensorRankMax = 8;
inline constexpr std::size_t kTensorNameBytesMax = 512;

/// One tensor of a file.
struct TensorInfo {
  std::string name;   ///< Printable ASCII, at most kTensorNameBytesMax bytes.
  std::string dtype;  ///< As written, a known one: "BF16", "F16", "F32", "F8_E4M3", "I32", ...
  std::vector<std::uint64_t> shape;
  remote::ByteRange bytes;  ///< Within the file, from its first byte.
};

/// What a file says of itself; nobody has checked it.
using Metadata = std::map<std::string, std::string>;

/// Bits of one element of a safetensors dtype; 0 if the dtype is unknown.
std::uint32_t dtype_bits(std::string_view dtype);

/// Length of the header JSON from a file's first eight bytes.
/// @param what  Names the file in errors.
/// @error bad_input  Longer than allowed or than the file; says so if the file is not safetensors
///                   at all (an LFS pointer, a web page).
Result<std::uint64_t> header_json_bytes(std::string_view first_bytes, std::uint64_t file_bytes,
                                        const std::string& what);

/// Tensors of a file, sorted by their place.
/// @param json        The header without its length prefix.
/// @param file_bytes  Size of the whole file: the tensors must cover it exactly.
/// @param metadata    If set, gets what the header says under `__metadata__`.
/// @error bad_input   Not a strict header: duplicate or unprintable names, unknown dtype, shape and
///                    range that disagree, overlaps, holes, or a file that ends too early or late.
/// @source github.com/huggingface/safetensors, README "Format"; stricter where it is lax.
Result<std::vector<TensorInfo>> parse_safetensors_header(std::string_view json,
                                                         std::uint64_t file_bytes,
                                                         const std::string& what,
                                                         Metadata* metadata = nullptr);

}  // namespace librarian::weightmap
