#pragma once
/// What the tensors of a quantised matrix mean: from their names, shapes and config.json's
/// quantization_config to gpu_exec's QuantisedMatrix. No I/O; may be called concurrently.

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "gpu_exec/quantised.h"

namespace librarian::weightmap {

/// `quantization_config`, as far as the tensors do not say it themselves.
struct Quantisation {
  enum class Method : std::uint8_t {
    fp8,  ///< DeepSeek's blocks; also fbgemm_fp8, whose scales say that they are rows.
    compressed_tensors,
    awq,
    gptq,
    bitsandbytes,
    mxfp4,
    modelopt,
  };
  Method method = Method::fp8;
  std::uint32_t bits = 4;             ///< awq, gptq: of a code.
  std::uint64_t group_size = 0;       ///< awq, gptq: inputs that share a scale; 0: all.
  std::uint64_t block_outputs = 128;  ///< fp8, compressed_tensors: of a block of scales.
  std::uint64_t block_inputs = 128;
  std::int32_t zero_plus = 0;      ///< gptq: 1 where zero points are kept less one.
  bool needs_group_index = false;  ///< gptq: inputs are in no order that follows from their number.
};
/// @param what  Names the document in errors.
/// @error bad_input  quant_method is unknown, or a number is not possible; names it.
Result<Quantisation> read_quantisation(const Json& config, const std::string& what);

/// A tensor of one module: what follows the module's name and its dot, e.g. "weight_scale_inv".
struct ModuleTensor {
  std::string suffix;
  std::string dtype;  ///< As safetensors writes it.
  std::vector<std::uint64_t> shape;
};

/// What a tensor is to the matrix.
enum class QuantTable : std::uint8_t {
  codes,
  scales,
  zeros,
  group_of_input,
  global_scale,
  code_table,    ///< bitsandbytes' quant_map,
  scale_table,   ///< nested_quant_map,
  scale_of_256,  ///< nested_absmax
  state,         ///< and quant_state.
  unused,        ///< Known, and W does not depend on it: scales of activations and the like.
};

/// A matrix without its bytes.
struct QuantisedModule {
  gpu_exec::QuantisedMatrix matrix;          ///< Its pointers are null.
  std::map<std::string, QuantTable> tables;  ///< Suffix -> what it is, of every tensor given.
};

/// The tensor's own name: "a.proj" and "weight_scale" -> "a.proj.weight_scale"; an expert's part of
/// a tensor of all: "a.proj[3]" and "weight_scales" -> "a.proj_scales[3]".
std::string quantised_tensor_name(std::string_view module, std::string_view suffix);
/// The module that a tensor of this name belongs to: quantised_tensor_name() undone.
std::string quantised_module_name(std::string_view tensor, std::string_view suffix);

/// Whether these tensors are a quantised matrix, not a plain `weight`.
bool is_quantised(std::span<const ModuleTensor> tensors);

/// @param tensors  All tensors of the module but its bias.
/// @param outputs, inputs  Of the matrix, as the model's shape says.
/// @param name     Of the module, for errors.
/// @error bad_input  Not a layout we know, a tensor is missing or unexpected, or its shape or type
/// is
///                   wrong: names the tensor.
Result<QuantisedModule> describe_quantised(const Quantisation& quantisation,
                                           std::span<const ModuleTensor> tensors,
                                           std::uint64_t outputs, std::uint64_t inputs,
                                           const std::string& name);

/// The matrix over bytes in host memory, which must outlive it.
/// @param bytes  By suffix; of all tables but the unused. Sizes are as described.
/// @error bad_input  a scale is not finite, a group number or the state is impossible: names the
///                   tensor.
Result<gpu_exec::QuantisedMatrix> bind_quantised(
    const QuantisedModule& module, const std::map<std::string, std::span<const std::byte>>& bytes,
    const std::string& name);

}  // namespace librarian::weightmap
