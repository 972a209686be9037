#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "weightmap/quantisation.h"

namespace librarian::weightmap {

using Method = Quantisation::Method;

namespace {

/// What tensors look like does not say whether they are pruned or rotated, too.
Result<void> check_compressed_tensors(const Json& config, const std::string& where) {
  static constexpr std::array<std::string_view, 7> kFormats{
      "dense",          "float-quantized",      "naive-quantized", "int-quantized",
      "pack-quantized", "nvfp4-pack-quantized", "mixed-precision"};
  const auto known = [](const Json& format) {
    return format.is_null() ||
           (format.is_string() && std::find(kFormats.begin(), kFormats.end(),
                                            format.get<std::string_view>()) != kFormats.end());
  };
  const auto refuse = [&](const std::string& key, const Json& value) {
    return Error(ErrorCode::bad_input,
                 where + ": " + key + " " + value.dump().substr(0, 100) + " is not built in");
  };
  const Json format = config.value("format", Json());
  if (!known(format)) {
    return refuse("format", format);
  }
  if (const Json groups = config.value("config_groups", Json()); groups.is_object()) {
    for (const auto& [name, group] : groups.items()) {
      const Json own = group.is_object() ? group.value("format", Json()) : Json();
      if (!known(own)) {
        return refuse("config_groups." + name + ".format", own);
      }
    }
  }
  const Json sparsity = config.value("sparsity_config", Json());
  if (sparsity.is_object() && !sparsity.empty() &&
      sparsity.value("format", Json()) != Json("dense")) {
    return refuse("sparsity_config", sparsity);
  }
  const Json transform = config.value("transform_config", Json());
  if (transform.is_object() && !transform.value("config_groups", Json::object()).empty()) {
    return refuse("transform_config", transform);
  }
  return {};
}

}  // namespace

Result<Quantisation> read_quantisation(const Json& config, const std::string& what) {
  Quantisation result;
  const std::string where = what + ": 'quantization_config'";
  const auto refuse = [&](const std::string& reason) {
    return Error(ErrorCode::bad_input, where + ": " + reason);
  };
  LIB_TRY(const std::string method, json_string(config, "quant_method", where));
  static constexpr std::array<std::pair<std::string_view, Method>, 8> kMethods{{
      {"fp8", Method::fp8},
      {"fbgemm_fp8", Method::fp8},
      {"compressed-tensors", Method::compressed_tensors},
      {"awq", Method::awq},
      {"gptq", Method::gptq},
      {"bitsandbytes", Method::bitsandbytes},
      {"mxfp4", Method::mxfp4},
      {"modelopt", Method::modelopt},
  }};
  const auto found = std::find_if(kMethods.begin(), kMethods.end(),
                                  [&](const auto& entry) { return entry.first == method; });
  if (found == kMethods.end()) {
    return refuse("quant_method '" + method.substr(0, 100) + "' is not built in");
  }
  result.method = found->second;
  if (result.method == Method::compressed_tensors) {
    LIB_TRY_VOID(check_compressed_tensors(config, where));
  }
  // Where the blocks of scales are: DeepSeek's key, or that of a group of compressed-tensors.
  Json block = config.value("weight_block_size", Json());
  if (const Json groups = config.value("config_groups", Json()); groups.is_object()) {
    for (const auto& [name, group] : groups.items()) {
      const Json weights = group.is_object() ? group.value("weights", Json()) : Json();
      if (weights.is_object() && weights.value("block_structure", Json()).is_array()) {
        block = weights["block_structure"];
      }
    }
  }
  if (!block.is_null()) {
    const bool sizes = block.is_array() && block.size() == 2 && block[0].is_number_unsigned() &&
                       block[1].is_number_unsigned() && block[0] != 0 && block[1] != 0;
    if (!sizes) {
      return refuse("weight_block_size must be two sizes");
    }
    result.block_outputs = block[0].get<std::uint64_t>();
    result.block_inputs = block[1].get<std::uint64_t>();
  }
  if (result.method == Method::awq || result.method == Method::gptq) {
    LIB_TRY(const std::uint64_t bits, json_uint(config, "bits", where));
    const Json group = config.value("group_size", Json());
    if (bits != 2 && bits != 3 && bits != 4 && bits != 8) {
      return refuse("bits must be 2, 3, 4 or 8");
    }
    if (!group.is_number_integer() || (group != -1 && group < 1)) {
      return refuse("group_size must be -1 or at least 1");
    }
    result.bits = static_cast<std::uint32_t>(bits);
    result.group_size = group == -1 ? 0 : group.get<std::uint64_t>();
  }
  if (result.method == Method::gptq) {
    const Json format = config.value("checkpoint_format", Json("gptq"));
    if (format != "gptq" && format != "gptq_v2") {
      return refuse("checkpoint_format must be gptq or gptq_v2");
    }
    result.zero_plus = format == "gptq" ? 1 : 0;
    result.needs_group_index = config.value("desc_act", Json(false)) == Json(true);
  }
  if (result.method == Method::awq && config.value("version", Json("gemm")) != "gemm") {
    return refuse("only AWQ's version gemm is built in");
  }
  return result;
}

}  // namespace librarian::weightmap
