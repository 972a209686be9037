// From a described module to a matrix over bytes: what only the bytes say.
#include <cmath>
#include <cstring>
#include <string_view>

#include "weightmap/quantisation.h"

namespace librarian::weightmap {
namespace {

using gpu_exec::DType;
using gpu_exec::QuantisedMatrix;
using gpu_exec::ScaleType;

/// bitsandbytes' own JSON: what the shapes do not say.
Result<void> read_state(std::span<const std::byte> bytes, const std::string& what,
                        const std::string& absmax, QuantisedMatrix& matrix) {
  JsonLimits limits;
  limits.text_bytes_max = 4096;
  limits.values_max = 64;
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  LIB_TRY(const Json state, parse_json(text, what, limits));
  LIB_TRY(matrix.scale_inputs, json_uint(state, "blocksize", what));
  const Json expected = Json::array({matrix.outputs, matrix.inputs});
  const std::uint64_t elements = matrix.outputs * matrix.inputs;
  const std::uint64_t blocks =
      matrix.scale_inputs == 0 ? 0 : (elements - 1) / matrix.scale_inputs + 1;
  if (!state.contains("shape") || state["shape"] != expected || blocks == 0 ||
      blocks != matrix.groups) {
    return Error(ErrorCode::bad_input, what + ": its shape and blocksize do not say " +
                                           std::to_string(matrix.groups) + " blocks of " +
                                           expected.dump() + ", as " + absmax + " does");
  }
  LIB_TRY(const std::string type, json_string(state, "dtype", what));
  if (type != "bfloat16" && type != "float16" && type != "float32") {
    return Error(ErrorCode::bad_input, what + ": dtype is '" + type + "', not a float");
  }
  matrix.result = type == "float32" ? DType::f32 : type == "float16" ? DType::f16 : DType::bf16;
  if (matrix.scale_type == ScaleType::table8) {
    const Json nested_block = state.value("nested_blocksize", Json(256));
    const Json offset = state.value("nested_offset", Json());
    if (nested_block != Json(256) || !offset.is_number() || !std::isfinite(offset.get<float>())) {
      return Error(ErrorCode::bad_input, what + ": needs nested_blocksize 256 and a nested_offset");
    }
    matrix.scale_offset = offset.get<float>();
  }
  return {};
}

/// f32 numbers of any alignment.
Result<void> check_finite(std::span<const std::byte> numbers) {
  for (std::size_t i = 0; i + sizeof(float) <= numbers.size(); i += sizeof(float)) {
    float number = 0;
    std::memcpy(&number, numbers.data() + i, sizeof number);
    if (!std::isfinite(number)) {
      return Error(ErrorCode::bad_input,
                   "number " + std::to_string(i / sizeof number) + " is not a finite number");
    }
  }
  return {};
}

/// What its own numbers alone can be wrong in.
Result<void> check_table(const QuantisedMatrix& matrix, QuantTable table,
                         std::span<const std::byte> data) {
  switch (table) {
    case QuantTable::code_table:
    case QuantTable::scale_table:
    case QuantTable::scale_of_256:
      return check_finite(data);
    case QuantTable::global_scale:
      if (!std::isfinite(matrix.global) || matrix.global == 0) {
        return Error(ErrorCode::bad_input, "is " + std::to_string(matrix.global));
      }
      return {};
    case QuantTable::scales:
      // Codes into tables that are looked at themselves.
      return matrix.scale_type == ScaleType::table8 ? Result<void>()
                                                    : gpu_exec::check_scales(matrix);
    case QuantTable::group_of_input:
      return gpu_exec::check_groups(matrix);
    default:
      return {};
  }
}

}  // namespace

Result<QuantisedMatrix> bind_quantised(
    const QuantisedModule& module, const std::map<std::string, std::span<const std::byte>>& bytes,
    const std::string& name) {
  QuantisedMatrix matrix = module.matrix;
  const auto data_of = [&](const std::string& suffix, QuantTable table) {
    return table == QuantTable::unused ? std::span<const std::byte>() : bytes.at(suffix);
  };
  for (const auto& [suffix, table] : module.tables) {
    if (table == QuantTable::unused) {
      continue;
    }
    const std::span<const std::byte> data = data_of(suffix, table);
    switch (table) {
      case QuantTable::codes:
        matrix.codes = data.data();
        break;
      case QuantTable::scales:
        matrix.scales = data.data();
        break;
      case QuantTable::zeros:
        matrix.zeros = data.data();
        break;
      case QuantTable::group_of_input:
        matrix.group_of_input = data.data();
        break;
      case QuantTable::global_scale:
        std::memcpy(&matrix.global, data.data(), sizeof matrix.global);
        break;
      case QuantTable::code_table:
        matrix.table = data.data();
        break;
      case QuantTable::scale_table:
        matrix.scale_table = data.data();
        break;
      case QuantTable::scale_of_256:
        matrix.scale_of_256 = data.data();
        break;
      case QuantTable::state:
        LIB_TRY_VOID(read_state(data, quantised_tensor_name(name, suffix),
                                quantised_tensor_name(name, "weight.absmax"), matrix));
        break;
      case QuantTable::unused:
        break;
    }
  }
  const gpu_exec::QuantisedSizes sizes = gpu_exec::quantised_sizes(matrix);
  for (const auto& [suffix, table] : module.tables) {
    const std::uint64_t wanted = table == QuantTable::codes            ? sizes.codes
                                 : table == QuantTable::scales         ? sizes.scales
                                 : table == QuantTable::zeros          ? sizes.zeros
                                 : table == QuantTable::group_of_input ? sizes.group_of_input
                                                                       : 0;
    LIB_CHECK(wanted == 0 || bytes.at(suffix).size() == wanted);
  }
  for (const auto& [suffix, table] : module.tables) {
    if (auto checked = check_table(matrix, table, data_of(suffix, table)); !checked) {
      return checked.error().with_context(quantised_tensor_name(name, suffix));
    }
  }
  return matrix;
}

}  // namespace librarian::weightmap
