#include "ingest/capture_list.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>

namespace librarian::ingest {
namespace {

using gpu_exec::CapturePoint;

/// Order within a layer is the order of computation; it is also the canonical order.
enum class Point : std::uint8_t { resid_pre, attn_out, resid_mid, mlp_out, resid_post };
constexpr std::array<const char*, 5> kPointNames{"resid_pre", "attn_out", "resid_mid", "mlp_out",
                                                 "resid_post"};

/// A capture as a place in the computation; sorts in that order.
struct Place {
  std::int32_t layer = 0;  // -1 embed; L pre_norm, L + 1 post_norm
  Point point = Point::resid_post;
  auto operator<=>(const Place&) const = default;  // NOLINT(modernize-use-nullptr): its own 0
};

Error wrong(std::string_view text, const std::string& reason) {
  return Error(ErrorCode::invalid_argument,
               "--capture '" + std::string(text.substr(0, 200)) + "': " + reason);
}

std::optional<Point> parse_point(std::string_view name) {
  for (std::size_t i = 0; i < kPointNames.size(); ++i) {
    if (name == kPointNames[i]) {
      return static_cast<Point>(i);
    }
  }
  return std::nullopt;
}

std::optional<std::int64_t> parse_integer(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || status != std::errc() || end != text.data() + text.size()) {
    return std::nullopt;
  }
  return value;
}

class Parser {
 public:
  explicit Parser(const CaptureShape& shape) : shape_(shape), layer_count_(shape.layer_count) {}

  Result<void> add(std::string_view text) {
    std::string_view name = text;
    const std::size_t bracket = name.find('(');
    if (bracket != std::string_view::npos) {
      return wrong(text, "captures take no options in brackets yet");
    }
    std::optional<std::string_view> layers;
    const std::size_t at = name.find('@');
    if (at != std::string_view::npos) {
      layers = name.substr(at + 1);
      name = name.substr(0, at);
    }
    if (const std::optional<Point> point = parse_point(name)) {
      LIB_TRY(const std::vector<std::int32_t> indices, parse_layers(text, layers.value_or("all")));
      for (const std::int32_t layer : indices) {
        LIB_TRY_VOID(insert(text, {layer, *point}));
      }
      return {};
    }
    if (layers) {
      return wrong(text, "'" + std::string(name) + "' takes no layers");
    }
    return add_single(text, name);
  }

  CaptureList finish() const {
    CaptureList list;
    list.layers.resize(static_cast<std::size_t>(layer_count_));
    for (const Place& place : places_) {
      list.requested.push_back(canonical_name(place));
      const Place home = home_of(place);
      if (home.layer < 0) {
        list.embed = true;
      } else if (home.layer > layer_count_) {
        list.final_norm = true;
      } else {
        static constexpr std::array kCapturePoints{CapturePoint::resid_post /* never */,
                                                   CapturePoint::attn_out, CapturePoint::resid_mid,
                                                   CapturePoint::mlp_out, CapturePoint::resid_post};
        list.layers[static_cast<std::size_t>(home.layer)].insert(
            kCapturePoints[static_cast<std::size_t>(home.point)]);
      }
      if (home != place) {
        list.aliases[canonical_name(place)] = canonical_name(home);
      }
    }
    return list;
  }

 private:
  Place embed() const { return {-1, Point::resid_post}; }
  Place pre_norm() const { return {layer_count_, Point::resid_post}; }
  Place post_norm() const { return {layer_count_ + 1, Point::resid_post}; }

  /// Where the tensor is written: one array per distinct tensor.
  Place home_of(Place place) const {
    if (place.layer < layer_count_ && place.point == Point::resid_pre) {
      return {place.layer - 1, Point::resid_post};  // of layer 0: the embedding
    }
    if (place == pre_norm()) {
      return {layer_count_ - 1, Point::resid_post};
    }
    return place;
  }

  std::string canonical_name(const Place& place) const {
    if (place.layer < 0) {
      return "embed";
    }
    if (place.layer >= layer_count_) {
      return place.layer == layer_count_ ? "final.pre_norm" : "final.post_norm";
    }
    return "blocks." + std::to_string(place.layer) + "." +
           kPointNames[static_cast<std::size_t>(place.point)];
  }

  /// @error invalid_argument  the model has no such tensor.
  Result<void> insert(std::string_view text, Place place) {
    const std::vector<std::int32_t>& parallel = shape_.without_mid;
    if (place.point == Point::resid_mid && place.layer < layer_count_ &&
        std::binary_search(parallel.begin(), parallel.end(), place.layer)) {
      return wrong(text, "layer " + std::to_string(place.layer) +
                             " adds attention and MLP in one step: it has no resid_mid");
    }
    if (place == post_norm() && !shape_.final_norm) {
      return wrong(text,
                   "this model has no norm after its last layer; its last state is "
                   "final.pre_norm");
    }
    places_.insert(place);
    return {};
  }

  Result<void> add_single(std::string_view text, std::string_view name) {
    if (name == "embed" || name == "hook_embed") {
      places_.insert(embed());
      return {};
    }
    if (name == "final.pre_norm") {
      places_.insert(pre_norm());
      return {};
    }
    if (name == "final.post_norm") {
      return insert(text, post_norm());
    }
    if (name.starts_with("hf:") || name.starts_with("vllm:")) {
      return add_hidden_state(text, name);
    }
    if (name.starts_with("blocks.")) {
      return add_block(text, name.substr(7));
    }
    if (name.starts_with("logits")) {
      return wrong(text, "logits are not built in yet");
    }
    return wrong(text,
                 "no such capture; there are embed, resid_pre, resid_mid, resid_post, attn_out, "
                 "mlp_out, final.pre_norm, final.post_norm, hf:i, vllm:i");
  }

  /// hf:i and vllm:i name resid_pre of layer i; their last one differs: after or before the norm.
  Result<void> add_hidden_state(std::string_view text, std::string_view name) {
    const bool hf = name.starts_with("hf:");
    const std::optional<std::int64_t> parsed = parse_integer(name.substr(name.find(':') + 1));
    const std::int64_t index =
        parsed.value_or(-1000000) + (parsed.value_or(0) < 0 ? layer_count_ + 1 : 0);
    if (!parsed || index < 0 || index > layer_count_) {
      return wrong(text, "the index must be 0 to " + std::to_string(layer_count_));
    }
    if (index == layer_count_) {
      // transformers' last state is the norm's output, where there is a norm.
      places_.insert(hf && shape_.final_norm ? post_norm() : pre_norm());
    } else {
      places_.insert({static_cast<std::int32_t>(index), Point::resid_pre});
    }
    return {};
  }

  Result<void> add_block(std::string_view text, std::string_view rest) {
    const std::size_t dot = rest.find('.');
    const std::optional<std::int64_t> layer =
        parse_integer(rest.substr(0, std::min(dot, rest.size())));
    std::string_view name = dot == std::string_view::npos ? "" : rest.substr(dot + 1);
    if (name.starts_with("hook_")) {
      name.remove_prefix(5);
    }
    const std::optional<Point> point = parse_point(name);
    if (!layer || !point) {
      return wrong(text,
                   "write blocks.N.NAME with NAME one of resid_pre, resid_mid, resid_post, "
                   "attn_out, mlp_out");
    }
    LIB_TRY(const std::int32_t index, layer_index(text, *layer));
    return insert(text, {index, *point});
  }

  Result<std::int32_t> layer_index(std::string_view text, std::int64_t layer) const {
    const std::int64_t index = layer < 0 ? layer + layer_count_ : layer;
    if (index < 0 || index >= layer_count_) {
      return wrong(text, "layer " + std::to_string(layer) + " is not one of the model's " +
                             std::to_string(layer_count_) + " layers (0 to " +
                             std::to_string(layer_count_ - 1) + ", or -1 for the last)");
    }
    return static_cast<std::int32_t>(index);
  }

  Result<std::vector<std::int32_t>> parse_layers(std::string_view text,
                                                 std::string_view layers) const {
    std::vector<std::int32_t> indices;
    if (layers == "all") {
      for (std::int32_t i = 0; i < layer_count_; ++i) {
        indices.push_back(i);
      }
      return indices;
    }
    if (layers.starts_with("every:") || layers.starts_with("spread:")) {
      return parse_stride(text, layers);
    }
    if (layers.starts_with("[") && layers.ends_with("]")) {
      std::string_view list = layers.substr(1, layers.size() - 2);
      while (true) {
        const std::size_t comma = list.find(',');
        const std::optional<std::int64_t> layer = parse_integer(trim(list.substr(0, comma)));
        if (!layer) {
          return wrong(text, "'" + std::string(list.substr(0, comma)) + "' is not a layer number");
        }
        LIB_TRY(const std::int32_t index, layer_index(text, *layer));
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
      return wrong(text, "layers are written all, 12, -1, [0,8,-1], 0..3, every:8 or spread:8");
    }
    LIB_TRY(const std::int32_t begin, layer_index(text, *first));
    LIB_TRY(const std::int32_t end, layer_index(text, *last));
    if (begin > end) {
      return wrong(text, "the range of layers is empty");
    }
    for (std::int32_t i = begin; i <= end; ++i) {
      indices.push_back(i);
    }
    return indices;
  }

  Result<std::vector<std::int32_t>> parse_stride(std::string_view text,
                                                 std::string_view layers) const {
    const bool every = layers.starts_with("every:");
    const std::optional<std::int64_t> number = parse_integer(layers.substr(layers.find(':') + 1));
    if (!number || *number < 1 || *number > layer_count_) {
      return wrong(text, "the number must be 1 to " + std::to_string(layer_count_));
    }
    std::vector<std::int32_t> indices;
    const std::int64_t count = every ? layer_count_ / *number : *number;
    for (std::int64_t i = 1; i <= count; ++i) {
      indices.push_back(static_cast<std::int32_t>(
          (every ? i * *number : (i * layer_count_ + *number / 2) / *number) - 1));
    }
    return indices;
  }

  static std::string_view trim(std::string_view text) {
    while (!text.empty() && text.front() == ' ') {
      text.remove_prefix(1);
    }
    while (!text.empty() && text.back() == ' ') {
      text.remove_suffix(1);
    }
    return text;
  }

  const CaptureShape& shape_;
  std::int32_t layer_count_;
  std::set<Place> places_;
};

/// Splits at commas that are not inside ( ) or [ ].
Result<std::vector<std::string_view>> split_captures(std::string_view text) {
  std::vector<std::string_view> items;
  int depth = 0;
  std::size_t begin = 0;
  for (std::size_t i = 0; i <= text.size(); ++i) {
    const char c = i < text.size() ? text[i] : ',';
    depth += c == '(' || c == '[' ? 1 : c == ')' || c == ']' ? -1 : 0;
    if (depth < 0 || (i == text.size() && depth != 0)) {
      return wrong(text, "the brackets do not match");
    }
    if (c == ',' && depth == 0) {
      std::string_view item = text.substr(begin, i - begin);
      item.remove_prefix(std::min(item.find_first_not_of(' '), item.size()));
      if (item.empty()) {
        return wrong(text, "an empty capture between commas");
      }
      items.push_back(item);
      begin = i + 1;
    }
  }
  return items;
}

constexpr std::array kPointsInOrder{CapturePoint::attn_out, CapturePoint::resid_mid,
                                    CapturePoint::mlp_out, CapturePoint::resid_post};

}  // namespace

CaptureShape capture_shape(const gpu_exec::ModelSpec& model) {
  CaptureShape shape;
  shape.layer_count = static_cast<std::int32_t>(model.layers.size());
  shape.final_norm = model.final_norm;
  for (std::int32_t layer = 0; layer < shape.layer_count; ++layer) {
    if (model.layers[static_cast<std::size_t>(layer)].residual == gpu_exec::Residual::parallel) {
      shape.without_mid.push_back(layer);
    }
  }
  return shape;
}

std::string capture_array_name(std::int32_t layer, CapturePoint point) {
  const char* name = point == CapturePoint::attn_out    ? "attn_out"
                     : point == CapturePoint::resid_mid ? "resid_mid"
                     : point == CapturePoint::mlp_out   ? "mlp_out"
                                                        : "resid_post";
  return "blocks." + std::to_string(layer) + "." + name;
}

std::int32_t CaptureList::last_layer() const {
  const auto count = static_cast<std::int32_t>(layers.size());
  if (final_norm) {
    return count;
  }
  for (std::int32_t layer = count - 1; layer >= 0; --layer) {
    if (!layers[static_cast<std::size_t>(layer)].empty()) {
      return layer;
    }
  }
  return -1;
}

std::vector<std::string> CaptureList::arrays_of(std::int32_t layer) const {
  std::vector<std::string> names;
  if (layer < 0) {
    if (embed) {
      names.emplace_back("embed");
    }
  } else if (layer == static_cast<std::int32_t>(layers.size())) {
    if (final_norm) {
      names.emplace_back("final.post_norm");
    }
  } else {
    for (const CapturePoint point : kPointsInOrder) {
      if (layers[static_cast<std::size_t>(layer)].contains(point)) {
        names.push_back(capture_array_name(layer, point));
      }
    }
  }
  return names;
}

std::size_t CaptureList::arrays_per_layer_max() const {
  std::size_t most = 1;
  for (const auto& points : layers) {
    most = std::max(most, points.size());
  }
  return most;
}

std::size_t CaptureList::array_count() const {
  std::size_t count = (embed ? 1U : 0U) + (final_norm ? 1U : 0U);
  for (const auto& points : layers) {
    count += points.size();
  }
  return count;
}

Result<CaptureList> parse_captures(const std::vector<std::string>& arguments,
                                   const CaptureShape& shape) {
  Parser parser(shape);
  for (const std::string& argument : arguments) {
    LIB_TRY(const std::vector<std::string_view> items, split_captures(argument));
    for (const std::string_view item : items) {
      LIB_TRY_VOID(parser.add(item));
    }
  }
  CaptureList list = parser.finish();
  if (list.requested.empty()) {
    return Error(ErrorCode::invalid_argument, "--capture names nothing to keep");
  }
  return list;
}

CaptureNotations capture_notations(const std::string& canonical, const CaptureShape& shape) {
  CaptureNotations names{"-", "-", "-"};
  const std::int32_t layer_count = shape.layer_count;
  const auto numbered = [&](std::int32_t i) {
    names.hf = i < layer_count || !shape.final_norm ? "hf:" + std::to_string(i) : "-";
    names.vllm = "vllm:" + std::to_string(i);
  };
  if (canonical == "embed") {
    numbered(0);
    names.transformer_lens = "hook_embed";
  } else if (canonical == "final.pre_norm") {
    numbered(layer_count);
  } else if (canonical == "final.post_norm") {
    // TransformerLens' ln_final.hook_normalized is before the norm's weight: another tensor.
    names.hf = "hf:" + std::to_string(layer_count);
  } else {
    const std::size_t dot = canonical.find('.', 7);
    const std::string point = canonical.substr(dot + 1);
    const auto layer = static_cast<std::int32_t>(std::stol(canonical.substr(7, dot - 7)));
    if (point == "resid_pre") {
      numbered(layer);
    } else if (point == "resid_post") {
      numbered(layer + 1);
    }
    names.transformer_lens = canonical.substr(0, dot + 1) + "hook_" + point;
  }
  return names;
}

}  // namespace librarian::ingest
