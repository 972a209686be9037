#include "weightmap/quantisation.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <utility>

namespace librarian::weightmap {
namespace {

using gpu_exec::CodeLayout;
using gpu_exec::DType;
using gpu_exec::QuantisedMatrix;
using gpu_exec::ScaleType;
using gpu_exec::ZeroLayout;

std::string shape_text(std::span<const std::uint64_t> shape) {
  std::string text = "[";
  for (const std::uint64_t size : shape) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  }
  return text + "]";
}

std::optional<DType> float_type(std::string_view dtype) {
  if (dtype == "F32") {
    return DType::f32;
  }
  if (dtype == "F16") {
    return DType::f16;
  }
  return dtype == "BF16" ? std::optional(DType::bf16) : std::nullopt;
}

std::uint64_t blocks_of(std::uint64_t count, std::uint64_t block) {
  return (count + block - 1) / block;
}

/// What a suffix begins with that is no part of the name of a tensor of all experts.
constexpr std::string_view kPart = "weight";

/// Suffixes that quantised modules have and W does not depend on.
constexpr std::array<std::string_view, 8> kUnused{
    "input_scale",        "activation_scale", "input_scale_ub", "input_zero_point",
    "input_global_scale", "weight_shape",     "k_scale",        "v_scale"};

/// Makes a QuantisedModule from one module's tensors, each of which is taken once.
class Describer {
 public:
  Describer(const Quantisation& quantisation, std::span<const ModuleTensor> tensors,
            std::uint64_t outputs, std::uint64_t inputs, const std::string& name)
      : quantisation_(quantisation), tensors_(tensors), name_(name) {
    matrix().outputs = outputs;
    matrix().inputs = inputs;
    matrix().scale_inputs = inputs;
  }

  Result<QuantisedModule> describe() {
    LIB_TRY_VOID(describe_layout());
    for (const ModuleTensor& tensor : tensors_) {
      if (module_.tables.contains(tensor.suffix)) {
        continue;
      }
      if (std::find(kUnused.begin(), kUnused.end(), tensor.suffix) == kUnused.end()) {
        return wrong(tensor.suffix, "is not part of any quantised layout that is built in");
      }
      module_.tables[tensor.suffix] = QuantTable::unused;
    }
    return std::move(module_);
  }

 private:
  QuantisedMatrix& matrix() { return module_.matrix; }

  Error wrong(std::string_view suffix, const std::string& reason) const {
    return Error(ErrorCode::bad_input, quantised_tensor_name(name_, suffix) + ": " + reason);
  }

  const ModuleTensor* find(std::string_view suffix) const {
    const auto found =
        std::find_if(tensors_.begin(), tensors_.end(),
                     [&](const ModuleTensor& tensor) { return tensor.suffix == suffix; });
    return found == tensors_.end() ? nullptr : &*found;
  }

  /// @param shapes  Any of which it may have.
  Result<void> take(std::string_view suffix, QuantTable table,
                    std::initializer_list<std::string_view> dtypes,
                    std::initializer_list<std::vector<std::uint64_t>> shapes) {
    const ModuleTensor* tensor = find(suffix);
    if (tensor == nullptr) {
      return wrong(suffix, "is missing beside the matrix's other tensors");
    }
    if (std::find(dtypes.begin(), dtypes.end(), tensor->dtype) == dtypes.end()) {
      return wrong(suffix, "has type " + tensor->dtype + ", not " + std::string(*dtypes.begin()));
    }
    if (std::find(shapes.begin(), shapes.end(), tensor->shape) == shapes.end()) {
      return wrong(suffix, "has shape " + shape_text(tensor->shape) + ", not " +
                               shape_text(*shapes.begin()));
    }
    module_.tables[tensor->suffix] = table;
    return {};
  }

  Result<void> describe_layout() {
    if (find("qweight") != nullptr) {
      return quantisation_.method == Quantisation::Method::awq ? describe_awq() : describe_gptq();
    }
    if (find("weight_blocks") != nullptr) {
      return describe_mxfp4();
    }
    if (const ModuleTensor* packed = find("weight_packed")) {
      return packed->dtype == "U8" ? describe_nvfp4("weight_packed", "weight_global_scale", true)
                                   : describe_packed_integers();
    }
    const ModuleTensor* weight = find("weight");
    if (weight == nullptr) {
      return wrong("weight", "is missing");
    }
    if (weight->dtype == "F8_E4M3") {
      return describe_f8();
    }
    if (weight->dtype == "I8") {
      return find("SCB") != nullptr ? describe_int8_of_bitsandbytes() : describe_int8();
    }
    if (weight->dtype == "U8") {
      return find("weight_scale_2") != nullptr ? describe_nvfp4("weight", "weight_scale_2", false)
                                               : describe_four_bits_of_bitsandbytes();
    }
    return wrong("weight", "type " + weight->dtype + " is no quantised layout that is built in");
  }

  /// A scale per matrix, per output, or per block; decides the result's type.
  Result<void> take_scales(std::string_view suffix) {
    const std::uint64_t outputs = matrix().outputs;
    const std::uint64_t inputs = matrix().inputs;
    const std::uint64_t block_rows = blocks_of(outputs, quantisation_.block_outputs);
    const std::uint64_t block_columns = blocks_of(inputs, quantisation_.block_inputs);
    LIB_TRY_VOID(take(suffix, QuantTable::scales, {"F32", "BF16", "F16", "F8_E8M0"},
                      {{block_rows, block_columns}, {outputs, 1}, {outputs}, {1}, {}, {1, 1}}));
    const ModuleTensor& tensor = *find(suffix);
    LIB_TRY_VOID(set_scale_type(tensor));
    const std::vector<std::uint64_t>& shape = tensor.shape;
    const bool whole = std::all_of(shape.begin(), shape.end(), [](auto size) { return size == 1; });
    if (!whole && shape == std::vector{block_rows, block_columns}) {
      matrix().scale_outputs = quantisation_.block_outputs;
      matrix().scale_inputs = quantisation_.block_inputs;
      matrix().groups = block_columns;
    } else if (whole) {
      matrix().scale_outputs = outputs;
    }
    return {};
  }

  Result<void> set_scale_type(const ModuleTensor& tensor) {
    if (tensor.dtype == "F8_E8M0") {
      matrix().scale_type = ScaleType::e8m0;
      matrix().result = DType::bf16;
      return {};
    }
    const std::optional<DType> type = float_type(tensor.dtype);
    if (!type) {
      return wrong(tensor.suffix, "has type " + tensor.dtype + ", not a float");
    }
    matrix().result = *type;
    matrix().scale_type = *type == DType::f32   ? ScaleType::f32
                          : *type == DType::f16 ? ScaleType::f16
                                                : ScaleType::bf16;
    return {};
  }

  /// Scales [outputs, groups], of which the number of inputs in a group follows.
  Result<void> take_group_scales(std::string_view suffix, std::uint64_t outputs_each,
                                 std::initializer_list<std::string_view> dtypes) {
    const ModuleTensor* tensor = find(suffix);
    const std::uint64_t groups = tensor != nullptr && tensor->shape.size() == 2
                                     ? std::max<std::uint64_t>(tensor->shape[1], 1)
                                     : 1;
    LIB_TRY_VOID(take(suffix, QuantTable::scales, dtypes, {{matrix().outputs, groups}}));
    if (matrix().inputs % groups != 0) {
      return wrong(suffix, std::to_string(groups) + " groups do not divide " +
                               std::to_string(matrix().inputs) + " inputs");
    }
    matrix().scale_outputs = outputs_each;
    matrix().groups = groups;
    matrix().scale_inputs = matrix().inputs / groups;
    return {};
  }

  Result<void> describe_f8() {
    matrix().layout = CodeLayout::f8_e4m3;
    LIB_TRY_VOID(
        take("weight", QuantTable::codes, {"F8_E4M3"}, {{matrix().outputs, matrix().inputs}}));
    return take_scales(find("weight_scale_inv") != nullptr ? "weight_scale_inv" : "weight_scale");
  }

  Result<void> describe_int8() {
    matrix().layout = CodeLayout::int8;
    LIB_TRY_VOID(take("weight", QuantTable::codes, {"I8"}, {{matrix().outputs, matrix().inputs}}));
    LIB_TRY_VOID(take_scales("weight_scale"));
    if (find("weight_zero_point") != nullptr) {
      matrix().zero_layout = ZeroLayout::int8;
      return take("weight_zero_point", QuantTable::zeros, {"I8"}, {find("weight_scale")->shape});
    }
    return {};
  }

  Result<void> describe_packed_integers() {
    const std::uint64_t outputs = matrix().outputs;
    const std::uint64_t inputs = matrix().inputs;
    const ModuleTensor& packed = *find("weight_packed");
    matrix().layout = CodeLayout::bits_by_row;
    for (const std::uint32_t bits : {2U, 3U, 4U, 8U}) {
      if (packed.shape == std::vector{outputs, (inputs * bits + 31) / 32}) {
        matrix().bits = bits;
        LIB_TRY_VOID(take("weight_packed", QuantTable::codes, {"I32"}, {packed.shape}));
        LIB_TRY_VOID(take_group_scales("weight_scale", 1, {"BF16", "F16", "F32"}));
        LIB_TRY_VOID(set_scale_type(*find("weight_scale")));
        if (find("weight_zero_point") != nullptr) {
          matrix().zero_layout = ZeroLayout::bits_by_output;
          LIB_TRY_VOID(take("weight_zero_point", QuantTable::zeros, {"I32"},
                            {{(outputs * bits + 31) / 32, matrix().groups}}));
        }
        return take_groups_of_inputs("weight_g_idx");
      }
    }
    return wrong("weight_packed", "has shape " + shape_text(packed.shape) + ", which is not " +
                                      std::to_string(outputs) + " rows of " +
                                      std::to_string(inputs) + " codes of 2, 3, 4 or 8 bits");
  }

  Result<void> take_groups_of_inputs(std::string_view suffix) {
    return find(suffix) == nullptr
               ? Result<void>()
               : take(suffix, QuantTable::group_of_input, {"I32"}, {{matrix().inputs}});
  }

  Result<void> describe_nvfp4(std::string_view codes, std::string_view global, bool divides) {
    constexpr std::uint64_t kGroup = 16;
    if (matrix().inputs % kGroup != 0) {
      return wrong(codes, "needs inputs in groups of 16, not " + std::to_string(matrix().inputs));
    }
    matrix().layout = CodeLayout::e2m1_by_row;
    matrix().scale_type = ScaleType::f8_e4m3;
    matrix().result = DType::bf16;
    matrix().has_global = true;
    matrix().divides_by_global = divides;
    LIB_TRY_VOID(take(codes, QuantTable::codes, {"U8"}, {{matrix().outputs, matrix().inputs / 2}}));
    LIB_TRY_VOID(take_group_scales("weight_scale", 1, {"F8_E4M3"}));
    if (matrix().scale_inputs != kGroup) {
      return wrong("weight_scale", "must have a scale for each 16 inputs");
    }
    return take(global, QuantTable::global_scale, {"F32"}, {{1}, {}});
  }

  Result<void> describe_mxfp4() {
    constexpr std::uint64_t kGroup = 32;
    if (matrix().inputs % kGroup != 0) {
      return wrong("weight_blocks", "needs inputs in groups of 32");
    }
    matrix().layout = CodeLayout::e2m1_by_row;
    matrix().scale_type = ScaleType::e8m0;
    matrix().result = DType::bf16;
    matrix().scale_inputs = kGroup;
    matrix().groups = matrix().inputs / kGroup;
    LIB_TRY_VOID(take("weight_blocks", QuantTable::codes, {"U8"},
                      {{matrix().outputs, matrix().groups, kGroup / 2}}));
    return take("weight_scales", QuantTable::scales, {"U8"}, {{matrix().outputs, matrix().groups}});
  }

  Result<void> set_groups_of_config() {
    const std::uint64_t group =
        quantisation_.group_size == 0 ? matrix().inputs : quantisation_.group_size;
    matrix().scale_inputs = group;
    matrix().groups = blocks_of(matrix().inputs, group);
    matrix().scale_by_input = true;
    matrix().bits = quantisation_.bits;
    LIB_TRY_VOID(take("scales", QuantTable::scales, {"F16", "BF16", "F32"},
                      {{matrix().groups, matrix().outputs}}));
    return set_scale_type(*find("scales"));
  }

  Result<void> describe_awq() {
    if (quantisation_.bits != 4) {
      return wrong("qweight", "AWQ with " + std::to_string(quantisation_.bits) +
                                  " bits is not built in, only 4");
    }
    if (matrix().outputs % 8 != 0) {
      return wrong("qweight", "needs a number of outputs that 8 divides");
    }
    matrix().layout = CodeLayout::awq;
    matrix().zero_layout = ZeroLayout::awq;
    LIB_TRY_VOID(set_groups_of_config());
    const std::uint64_t words = matrix().outputs / 8;
    LIB_TRY_VOID(take("qweight", QuantTable::codes, {"I32"}, {{matrix().inputs, words}}));
    return take("qzeros", QuantTable::zeros, {"I32"}, {{matrix().groups, words}});
  }

  Result<void> describe_gptq() {
    matrix().layout = CodeLayout::bits_by_input;
    matrix().zero_layout = ZeroLayout::bits_in_row;
    matrix().zero_plus = quantisation_.zero_plus;
    LIB_TRY_VOID(set_groups_of_config());
    const auto words = [&](std::uint64_t count) { return (count * matrix().bits + 31) / 32; };
    LIB_TRY_VOID(
        take("qweight", QuantTable::codes, {"I32"}, {{words(matrix().inputs), matrix().outputs}}));
    LIB_TRY_VOID(
        take("qzeros", QuantTable::zeros, {"I32"}, {{matrix().groups, words(matrix().outputs)}}));
    if (quantisation_.needs_group_index && find("g_idx") == nullptr) {
      return wrong("g_idx", "is missing, and config.json says desc_act");
    }
    return take_groups_of_inputs("g_idx");
  }

  Result<void> describe_int8_of_bitsandbytes() {
    matrix().layout = CodeLayout::int8;
    // f32, as the library multiplies: by its own constant for 1 / 127.
    matrix().after = 7.874015718698502e-3F;
    matrix().result = DType::f32;
    LIB_TRY_VOID(take("weight", QuantTable::codes, {"I8"}, {{matrix().outputs, matrix().inputs}}));
    if (find("weight_format") != nullptr) {
      module_.tables["weight_format"] = QuantTable::unused;
    }
    return take("SCB", QuantTable::scales, {"F32"}, {{matrix().outputs}});
  }

  Result<void> describe_four_bits_of_bitsandbytes() {
    const std::uint64_t elements = matrix().outputs * matrix().inputs;
    const ModuleTensor* absmax = find("weight.absmax");
    if (absmax == nullptr || absmax->shape.size() != 1 || absmax->shape[0] == 0) {
      return wrong("weight.absmax", "is missing beside packed 4-bit codes, or not a vector");
    }
    matrix().layout = CodeLayout::table_flat;
    LIB_TRY_VOID(take("weight", QuantTable::codes, {"U8"}, {{(elements + 1) / 2, 1}}));
    LIB_TRY_VOID(take("weight.quant_map", QuantTable::code_table, {"F32"}, {{16}}));
    const std::uint64_t blocks = absmax->shape[0];
    matrix().groups = blocks;  // The state, when it is there, has to agree.
    LIB_TRY_VOID(take("weight.absmax", QuantTable::scales, {"F32", "U8"}, {{blocks}}));
    if (absmax->dtype == "U8") {
      matrix().scale_type = ScaleType::table8;
      LIB_TRY_VOID(take("weight.nested_quant_map", QuantTable::scale_table, {"F32"}, {{256}}));
      LIB_TRY_VOID(take("weight.nested_absmax", QuantTable::scale_of_256, {"F32"},
                        {{blocks_of(blocks, 256)}}));
    }
    for (const ModuleTensor& tensor : tensors_) {
      if (tensor.suffix.starts_with("weight.quant_state.bitsandbytes__")) {
        module_.tables[tensor.suffix] = QuantTable::state;
        return {};
      }
    }
    return wrong("weight.quant_state.bitsandbytes__nf4", "is missing");
  }

  const Quantisation& quantisation_;
  std::span<const ModuleTensor> tensors_;
  const std::string& name_;
  QuantisedModule module_;
};

}  // namespace

std::string quantised_tensor_name(std::string_view module, std::string_view suffix) {
  const std::size_t number = module.ends_with(']') ? module.rfind('[') : std::string_view::npos;
  if (number == std::string_view::npos || !suffix.starts_with(kPart)) {
    return std::string(module) + "." + std::string(suffix);
  }
  return std::string(module.substr(0, number)) + std::string(suffix.substr(kPart.size())) +
         std::string(module.substr(number));
}

std::string quantised_module_name(std::string_view tensor, std::string_view suffix) {
  const std::size_t number = tensor.ends_with(']') ? tensor.rfind('[') : tensor.size();
  const std::string of_expert(tensor.substr(number));
  for (const std::string& ending :
       {"." + std::string(suffix),
        std::string(suffix.substr(std::min(kPart.size(), suffix.size())))}) {
    if (tensor.substr(0, number).ends_with(ending)) {
      return std::string(tensor.substr(0, number - ending.size())) + of_expert;
    }
  }
  return std::string(tensor);
}

bool is_quantised(std::span<const ModuleTensor> tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const ModuleTensor& tensor) {
    const bool packed = tensor.suffix == "qweight" || tensor.suffix == "weight_packed" ||
                        tensor.suffix == "weight_blocks";
    return packed || (tensor.suffix == "weight" && !float_type(tensor.dtype));
  });
}

Result<QuantisedModule> describe_quantised(const Quantisation& quantisation,
                                           std::span<const ModuleTensor> tensors,
                                           std::uint64_t outputs, std::uint64_t inputs,
                                           const std::string& name) {
  return Describer(quantisation, tensors, outputs, inputs, name).describe();
}

}  // namespace librarian::weightmap
