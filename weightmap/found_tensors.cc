#include "weightmap/found_tensors.h"

#include <array>

#include "weightmap/quantised_modules.h"

namespace librarian::weightmap {
namespace {

using gpu_exec::ExpertStorage;
using gpu_exec::LayerSpec;

/// What follows the name of a tensor of all experts where they are quantised.
constexpr std::array<std::pair<std::string_view, std::string_view>, 2> kPartsOfAll{
    {{"_blocks", "weight_blocks"}, {"_scales", "weight_scales"}}};

/// A tensor of all experts: what it is without the ending that says which part of codes it holds.
struct NameOfAll {
  NamedTensor named;
  std::string_view module;
  std::string_view suffix;
};
NameOfAll classify_all(std::string_view name, const NameScheme& scheme, std::string_view prefix,
                       std::int32_t layers) {
  NameOfAll all{classify_tensor(name, scheme, prefix, layers), name, "weight"};
  for (const auto& [ending, suffix] : kPartsOfAll) {
    if (all.named.kind != NamedTensor::Kind::unknown || !name.ends_with(ending)) {
      continue;
    }
    const std::string_view module = name.substr(0, name.size() - ending.size());
    const NamedTensor named = classify_tensor(module, scheme, prefix, layers);
    if (named.all_experts) {
      return {named, module, suffix};
    }
  }
  return all;
}

/// Shape of one expert's part, or none if the whole does not have the layer's experts.
std::vector<std::uint64_t> part_shape(const std::vector<std::uint64_t>& whole,
                                      const gpu_exec::MoeSpec& moe) {
  if (whole.empty() || moe.experts == 0) {
    return {};
  }
  std::vector<std::uint64_t> part(whole.begin(), whole.end());
  if (moe.storage == ExpertStorage::flat) {
    if (whole[0] % moe.experts != 0) {
      return {};
    }
    part[0] /= moe.experts;
    return part;
  }
  part.erase(part.begin());
  return whole[0] == moe.experts ? part : std::vector<std::uint64_t>();
}

}  // namespace

std::string shape_text(std::span<const std::uint64_t> shape) {
  std::string text = "[";
  for (const std::uint64_t extent : shape) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  }
  return text + "]";
}

Result<std::vector<FoundTensor>> find_tensors(
    std::span<const std::pair<std::uint32_t, TensorInfo>> tensors, const NameScheme& scheme,
    std::string_view prefix, const gpu_exec::ModelSpec& model,
    const std::function<std::string(std::uint32_t file)>& where) {
  std::vector<FoundTensor> found;
  found.reserve(tensors.size());
  const auto layers = static_cast<std::int32_t>(model.layers.size());
  for (const auto& [file, info] : tensors) {
    const NameOfAll all = classify_all(info.name, scheme, prefix, layers);
    if (!all.named.all_experts) {
      const ModuleName split = split_module_name(info.name);
      found.push_back({file, info, all.named,
                       std::string(split.suffix.empty() ? std::string_view() : split.module),
                       std::string(split.suffix)});
      continue;
    }
    const gpu_exec::MoeSpec& moe = model.layers[static_cast<std::size_t>(all.named.layer)].moe;
    const std::vector<std::uint64_t> shape = part_shape(info.shape, moe);
    if (shape.empty()) {
      return Error(ErrorCode::bad_input, where(file) + ": tensor '" + info.name + "' has shape " +
                                             shape_text(info.shape) +
                                             " where config.json asks for " +
                                             std::to_string(moe.experts) + " experts in layer " +
                                             std::to_string(all.named.layer));
    }
    const std::uint64_t bytes = info.bytes.size() / moe.experts;
    for (std::uint32_t expert = 0; expert < moe.experts; ++expert) {
      const std::string number = "[" + std::to_string(expert) + "]";
      FoundTensor part{file, {info.name + number, info.dtype, shape, {}}, all.named, {}, {}};
      part.info.bytes = {info.bytes.begin + expert * bytes,
                         info.bytes.begin + (expert + 1) * bytes};
      part.named.key.expert = expert;
      part.named.all_experts = false;
      part.module = std::string(all.module) + number;
      part.suffix = all.suffix;
      found.push_back(std::move(part));
    }
  }
  return found;
}

}  // namespace librarian::weightmap
