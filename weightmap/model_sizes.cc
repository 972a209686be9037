#include "weightmap/model_sizes.h"

#include <algorithm>
#include <charconv>
#include <string_view>
#include <utility>

#include "base/json.h"
#include "weightmap/safetensors_header.h"
#include "weightmap/weight_files.h"

namespace librarian::weightmap {
namespace {

constexpr std::uint64_t kConfigBytesMax = 16U << 20U;
constexpr std::size_t kOpenTogether = 64;
constexpr std::size_t kDigitsMax = 9;
constexpr std::size_t kModelTypeBytesMax = 64;

using Stacks = std::map<std::string, std::map<std::uint32_t, LayerSize>, std::less<>>;

void count(const TensorInfo& tensor, Stacks& stacks, ModelSizes& sizes) {
  const std::uint64_t bytes = tensor.bytes.size();
  ++sizes.tensors;
  sizes.bytes += bytes;
  sizes.bytes_of_dtype[tensor.dtype] += bytes;
  std::string_view prefix;
  std::uint32_t number = 0;
  if (!split_layer_name(tensor.name, prefix, number)) {
    sizes.bytes_outside += bytes;
    return;
  }
  auto stack = stacks.find(prefix);
  if (stack == stacks.end()) {
    stack = stacks.emplace(prefix, std::map<std::uint32_t, LayerSize>()).first;
  }
  LayerSize& layer = stack->second[number];
  layer.layer = number;
  ++layer.tensors;
  layer.bytes += bytes;
}

/// Of config.json, or of its text part; a config.json that says nothing of it is no error here.
Result<std::string> read_model_type(remote::Fetcher& fetcher, const remote::Uri& directory,
                                    const std::stop_token& stop) {
  const remote::Uri uri = directory.child("config.json");
  LIB_TRY(const std::string text, remote::read_object(fetcher, uri, kConfigBytesMax, stop));
  LIB_TRY(const Json document, parse_json(text, uri.display()));
  const auto found = document.find("model_type");
  if (found == document.end() || !found->is_string()) {
    return std::string();
  }
  // It is shown to people: no bytes that drive a terminal.
  std::string type = found->get_ref<const std::string&>().substr(0, kModelTypeBytesMax);
  std::erase_if(type, [](char c) { return c < ' ' || c > '~'; });
  return type;
}

}  // namespace

bool split_layer_name(std::string_view name, std::string_view& prefix, std::uint32_t& number) {
  for (std::size_t begin = 0; begin < name.size();) {
    const std::size_t end = std::min(name.find('.', begin), name.size());
    const std::string_view piece = name.substr(begin, end - begin);
    const bool digits = !piece.empty() && piece.size() <= kDigitsMax &&
                        piece.find_first_not_of("0123456789") == std::string_view::npos;
    if (digits && begin != 0) {
      prefix = name.substr(0, begin);
      std::from_chars(piece.data(), piece.data() + piece.size(), number);
      return true;
    }
    begin = end + 1;
  }
  return false;
}

Result<ModelSizes> measure_model(remote::Fetcher& fetcher, const remote::Uri& directory,
                                 const std::stop_token& stop) {
  ModelSizes sizes;
  LIB_TRY(sizes.model_type, read_model_type(fetcher, directory, stop));
  LIB_TRY(const WeightFileList list, list_weight_files(fetcher, directory, stop));
  const std::vector<std::string> names(list.names.begin(), list.names.end());
  Stacks stacks;
  for (std::size_t begin = 0; begin < names.size(); begin += kOpenTogether) {
    const std::span<const std::string> together =
        std::span(names).subspan(begin, std::min(kOpenTogether, names.size() - begin));
    LIB_TRY(const std::vector<remote::Fetcher::Opened> all,
            open_weight_files(fetcher, directory, list, together, kWeightHeadBytes, stop));
    for (std::size_t i = 0; i < together.size(); ++i) {
      const std::string uri = directory.child(together[i]).display();
      LIB_TRY(const std::string header, read_header_json(fetcher, all[i], uri, stop));
      LIB_TRY(const std::vector<TensorInfo> tensors,
              parse_safetensors_header(header, all[i].info.size, uri));
      for (const TensorInfo& tensor : tensors) {
        count(tensor, stacks, sizes);
      }
    }
  }
  sizes.files = names.size();
  for (const auto& [prefix, layers] : stacks) {
    LayerStack stack{prefix, {}, 0};
    for (const auto& [number, layer] : layers) {
      stack.layers.push_back(layer);
      stack.bytes += layer.bytes;
    }
    sizes.stacks.push_back(std::move(stack));
  }
  std::stable_sort(sizes.stacks.begin(), sizes.stacks.end(),
                   [](const LayerStack& a, const LayerStack& b) { return a.bytes > b.bytes; });
  return sizes;
}

}  // namespace librarian::weightmap
