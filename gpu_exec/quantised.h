#pragma once
/// Matrices as quantised checkpoints keep them: where codes, scales and zero points lie, and what
/// number they mean. Bits are those of each format's own library: W is computed in f32 and rounded
/// once to the type that the library decodes to.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/error.h"
#include "gpu_exec/model_spec.h"

namespace librarian::gpu_exec {

/// Where the code of W[output, input] lies and which number it is before zero point and scale.
enum class CodeLayout : std::uint8_t {
  f8_e4m3,        ///< [outputs, inputs] bytes.
  int8,           ///< [outputs, inputs] signed bytes.
  bits_by_row,    ///< Words [outputs, ceil(inputs * bits / 32)]: input i at bit i * bits, lowest
                  ///< first; the number is code - 2^(bits - 1).
  e2m1_by_row,    ///< Bytes [outputs, inputs / 2], the low nibble first.
  bits_by_input,  ///< GPTQ: words [ceil(inputs * bits / 32), outputs], input i at bit i * bits.
  awq,            ///< Words [inputs, outputs / 8], nibble n is output 8 w + {0,2,4,6,1,3,5,7}[n].
  table_flat,     ///< bitsandbytes: nibble of element output * inputs + input, the HIGH one first;
                  ///< the number is table[code].
};

enum class ScaleType : std::uint8_t {
  f32,
  f16,
  bf16,
  f8_e4m3,
  e8m0,    ///< 2^(byte - 127)
  table8,  ///< bitsandbytes' nested: table[byte] * of_256[index / 256] + offset.
};
std::uint64_t scale_bytes(ScaleType type);

enum class ZeroLayout : std::uint8_t {
  none,
  int8,            ///< [outputs, groups] signed bytes.
  bits_by_output,  ///< compressed-tensors: words [ceil(outputs * bits / 32), groups], output o at
                   ///< bit o * bits of its column; minus 2^(bits - 1).
  bits_in_row,     ///< GPTQ: words [groups, ceil(outputs * bits / 32)], output o at bit o * bits.
  awq,             ///< Words [groups, outputs / 8] in AWQ's order.
};

/// One matrix W [outputs, inputs], y = x W^T. Plain pointers to what a checkpoint holds, at any
/// alignment; the same on host and device. W = round(number - zero) * scale * global.
struct QuantisedMatrix {
  std::uint64_t outputs = 0, inputs = 0;
  CodeLayout layout = CodeLayout::f8_e4m3;
  std::uint32_t bits = 8;  ///< Of a code in words: 2, 3, 4 or 8.
  const std::byte* codes = nullptr;

  /// Scale of (o, i) is row o / scale_outputs, column group(i) of [ceil(outputs / scale_outputs),
  /// groups]; where `scale_by_input`, row group(i), column o (GPTQ, AWQ); for table_flat the
  /// element's number / scale_inputs.
  ScaleType scale_type = ScaleType::f32;
  const std::byte* scales = nullptr;
  std::uint64_t scale_outputs = 1, scale_inputs = 1, groups = 1;
  bool scale_by_input = false;
  const std::byte* group_of_input =
      nullptr;  ///< int32 [inputs] (act-order), else i / scale_inputs.

  ZeroLayout zero_layout = ZeroLayout::none;
  const std::byte* zeros = nullptr;
  std::int32_t zero_plus = 0;  ///< Added to what is stored (GPTQ's first format: 1).

  bool has_global = false;
  bool divides_by_global = false;  ///< The scale is divided by it, else multiplied.
  float global = 1.0F;
  float after = 1.0F;  ///< The product in f32 is multiplied by it in f32 (bitsandbytes: 1 / 127).

  const std::byte* table = nullptr;         ///< f32 [16], of table_flat.
  const std::byte* scale_table = nullptr;   ///< f32 [256], of table8,
  const std::byte* scale_of_256 = nullptr;  ///< its outer scales, f32,
  float scale_offset = 0;                   ///< and offset.

  DType result = DType::bf16;  ///< What the format's library decodes to.
};

/// W[output, input], rounded to `result`. The definition; dequantise() is the fast way.
float quantised_element(const QuantisedMatrix& matrix, std::uint64_t output, std::uint64_t input);

/// Outputs [first, first + rows) and inputs [begin, end) of W in the type `to`, row-major.
/// Thread-safe.
/// @param out  [rows, end - begin], aligned for `to`.
void dequantise(const QuantisedMatrix& matrix, std::uint64_t first, std::uint64_t rows,
                std::uint64_t begin, std::uint64_t end, DType to, std::byte* out);

/// Bytes that each table of a matrix must have: what a checkpoint's shapes are checked against.
struct QuantisedSizes {
  std::uint64_t codes = 0, scales = 0, zeros = 0, group_of_input = 0;
};
QuantisedSizes quantised_sizes(const QuantisedMatrix& matrix);

/// Looks at all scales before they are used.
/// @error bad_input  one of them is NaN or infinite; does not name the tensor.
Result<void> check_scales(const QuantisedMatrix& matrix);
/// @error bad_input  a number in group_of_input is outside [0, groups); does not name the tensor.
Result<void> check_groups(const QuantisedMatrix& matrix);

}  // namespace librarian::gpu_exec
