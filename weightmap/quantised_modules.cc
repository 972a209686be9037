#include "weightmap/quantised_modules.h"

#include <algorithm>
#include <array>

#include "weightmap/found_tensors.h"
#include "weightmap/quantisation.h"

namespace librarian::weightmap {
namespace {

/// Longest first where one ends another.
constexpr std::array<std::string_view, 25> kSuffixes{"weight_scale_inv",
                                                     "weight_scale_2",
                                                     "weight_scale",
                                                     "weight_zero_point",
                                                     "weight_global_scale",
                                                     "weight_packed",
                                                     "weight_shape",
                                                     "weight_g_idx",
                                                     "weight_format",
                                                     "weight.absmax",
                                                     "weight.quant_map",
                                                     "weight.nested_absmax",
                                                     "weight.nested_quant_map",
                                                     "weight.quant_state.bitsandbytes__nf4",
                                                     "weight.quant_state.bitsandbytes__fp4",
                                                     "qweight",
                                                     "qzeros",
                                                     "scales",
                                                     "g_idx",
                                                     "SCB",
                                                     "input_scale",
                                                     "input_scale_ub",
                                                     "input_zero_point",
                                                     "input_global_scale",
                                                     "weight"};

}  // namespace

ModuleName split_module_name(std::string_view name) {
  for (const std::string_view suffix : kSuffixes) {
    if (name.size() > suffix.size() + 1 && name.ends_with(suffix) &&
        name[name.size() - suffix.size() - 1] == '.') {
      return {name.substr(0, name.size() - suffix.size() - 1), suffix};
    }
  }
  return {name, {}};
}

QuantisedTensors find_quantised_modules(std::span<const FoundTensor> tensors) {
  QuantisedTensors modules;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].suffix.empty()) {
      modules[tensors[i].module].push_back(i);
    }
  }
  std::erase_if(modules, [&](const auto& entry) {
    std::vector<ModuleTensor> found;
    for (const std::size_t i : entry.second) {
      found.push_back({tensors[i].suffix, tensors[i].info.dtype, {}});
    }
    return !is_quantised(found);
  });
  return modules;
}

}  // namespace librarian::weightmap
