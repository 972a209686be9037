#include "ingest/capture_layers.h"

#include <charconv>

namespace librarian::ingest {
namespace {

std::string_view trim(std::string_view text) {
  while (!text.empty() && text.front() == ' ') {
    text.remove_prefix(1);
  }
  while (!text.empty() && text.back() == ' ') {
    text.remove_suffix(1);
  }
  return text;
}

Result<std::vector<std::int32_t>> parse_stride(std::string_view text, std::string_view layers,
                                               std::int32_t layer_count) {
  const bool every = layers.starts_with("every:");
  const std::optional<std::int64_t> number = parse_integer(layers.substr(layers.find(':') + 1));
  if (!number || *number < 1 || *number > layer_count) {
    return wrong_capture(text, "the number must be 1 to " + std::to_string(layer_count));
  }
  std::vector<std::int32_t> indices;
  const std::int64_t count = every ? layer_count / *number : *number;
  for (std::int64_t i = 1; i <= count; ++i) {
    indices.push_back(static_cast<std::int32_t>(
        (every ? i * *number : (i * layer_count + *number / 2) / *number) - 1));
  }
  return indices;
}

}  // namespace

Error wrong_capture(std::string_view text, const std::string& reason) {
  return Error(ErrorCode::invalid_argument,
               "--capture '" + std::string(text.substr(0, 200)) + "': " + reason);
}

std::optional<std::int64_t> parse_integer(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || status != std::errc() || end != text.data() + text.size()) {
    return std::nullopt;
  }
  return value;
}

Result<std::int32_t> layer_index(std::string_view text, std::int64_t layer,
                                 std::int32_t layer_count) {
  const std::int64_t index = layer < 0 ? layer + layer_count : layer;
  if (index < 0 || index >= layer_count) {
    return wrong_capture(text, "layer " + std::to_string(layer) + " is not one of the model's " +
                                   std::to_string(layer_count) + " layers (0 to " +
                                   std::to_string(layer_count - 1) + ", or -1 for the last)");
  }
  return static_cast<std::int32_t>(index);
}

Result<std::vector<std::int32_t>> parse_layers(std::string_view text, std::string_view layers,
                                               std::int32_t layer_count) {
  std::vector<std::int32_t> indices;
  if (layers == "all") {
    for (std::int32_t i = 0; i < layer_count; ++i) {
      indices.push_back(i);
    }
    return indices;
  }
  if (layers.starts_with("every:") || layers.starts_with("spread:")) {
    return parse_stride(text, layers, layer_count);
  }
  if (layers.starts_with("[") && layers.ends_with("]")) {
    std::string_view list = layers.substr(1, layers.size() - 2);
    while (true) {
      const std::size_t comma = list.find(',');
      const std::optional<std::int64_t> layer = parse_integer(trim(list.substr(0, comma)));
      if (!layer) {
        return wrong_capture(text,
                             "'" + std::string(list.substr(0, comma)) + "' is not a layer number");
      }
      LIB_TRY(const std::int32_t index, layer_index(text, *layer, layer_count));
      indices.push_back(index);
      if (comma == std::string_view::npos) {
        return indices;
      }
      list.remove_prefix(comma + 1);
    }
  }
  const std::size_t dots = layers.find("..");
  const std::optional<std::int64_t> first = parse_integer(layers.substr(0, dots));
  const std::optional<std::int64_t> last =
      dots == std::string_view::npos ? first : parse_integer(layers.substr(dots + 2));
  if (!first || !last) {
    return wrong_capture(text,
                         "layers are written all, 12, -1, [0,8,-1], 0..3, every:8 or spread:8");
  }
  LIB_TRY(const std::int32_t begin, layer_index(text, *first, layer_count));
  LIB_TRY(const std::int32_t end, layer_index(text, *last, layer_count));
  if (begin > end) {
    return wrong_capture(text, "the range of layers is empty");
  }
  for (std::int32_t i = begin; i <= end; ++i) {
    indices.push_back(i);
  }
  return indices;
}

}  // namespace librarian::ingest
