#include "cli/plan_sizes.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "base/units.h"
#include "cli/output.h"

namespace librarian::cli {
namespace {

using weightmap::LayerSize;
using weightmap::LayerStack;

constexpr std::size_t kRangesShown = 6;
constexpr std::size_t kSizesShown = 8;

/// "0..2, 4, 6..9" of numbers in order.
std::string ranges_text(const std::vector<std::uint32_t>& numbers) {
  std::string text;
  std::size_t ranges = 0;
  for (std::size_t begin = 0; begin < numbers.size();) {
    std::size_t end = begin + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) {
      ++end;
    }
    if (ranges++ == kRangesShown) {
      return text + ", ...";
    }
    text += (text.empty() ? "" : ", ") + std::to_string(numbers[begin]) +
            (end - begin > 1 ? ".." + std::to_string(numbers[end - 1]) : "");
    begin = end;
  }
  return text;
}

/// A line for each size that layers have, the commonest first.
void print_stack(const LayerStack& stack) {
  std::map<std::uint64_t, std::vector<std::uint32_t>> by_size;
  for (const LayerSize& layer : stack.layers) {
    by_size[layer.bytes].push_back(layer.layer);
  }
  std::vector<std::pair<std::uint64_t, std::vector<std::uint32_t>>> sizes(by_size.begin(),
                                                                          by_size.end());
  std::stable_sort(sizes.begin(), sizes.end(),
                   [](const auto& a, const auto& b) { return a.second.size() > b.second.size(); });
  print(fact("layers", std::to_string(stack.layers.size()) + " of " + stack.prefix + "N, " +
                           format_bytes(stack.bytes)));
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (i == kSizesShown) {
      print(fact("", "and " + std::to_string(sizes.size() - i) + " other sizes"));
      return;
    }
    const auto& [bytes, numbers] = sizes[i];
    print(fact("", std::to_string(numbers.size()) + " x " + format_bytes(bytes) + ": " +
                       ranges_text(numbers)));
  }
}

Json sizes_to_json(const ingest::UnsupportedModel& model) {
  Json stacks = Json::array();
  for (const LayerStack& stack : model.sizes.stacks) {
    Json layers = Json::array();
    for (const LayerSize& layer : stack.layers) {
      layers.push_back(
          {{"layer", layer.layer}, {"tensors", layer.tensors}, {"bytes", layer.bytes}});
    }
    stacks.push_back({{"prefix", stack.prefix}, {"bytes", stack.bytes}, {"layers", layers}});
  }
  return {{"model_type", model.sizes.model_type},
          {"files", model.sizes.files},
          {"tensors", model.sizes.tensors},
          {"bytes", model.sizes.bytes},
          {"bytes_outside", model.sizes.bytes_outside},
          {"bytes_of_dtype", model.sizes.bytes_of_dtype},
          {"stacks", stacks},
          {"why", model.why.message()}};
}

}  // namespace

void print_sizes(const ingest::UnsupportedModel& model, bool json) {
  if (json) {
    print_event("model_sizes", sizes_to_json(model));
    return;
  }
  const weightmap::ModelSizes& sizes = model.sizes;
  print(model.place + "\n");
  print(fact("model", (sizes.model_type.empty() ? "no model_type" : sizes.model_type) + ", " +
                          format_bytes(sizes.bytes) + " in " + format_count(sizes.tensors) +
                          " tensors in " + std::to_string(sizes.files) + " files"));
  std::string types;
  for (const auto& [type, bytes] : sizes.bytes_of_dtype) {
    types += (types.empty() ? "" : ", ") + type + " " + format_bytes(bytes);
  }
  print(fact("types", types));
  for (const LayerStack& stack : sizes.stacks) {
    print_stack(stack);
  }
  print(fact("outside", format_bytes(sizes.bytes_outside) + " (embedding, head and the like)"));
}

}  // namespace librarian::cli
