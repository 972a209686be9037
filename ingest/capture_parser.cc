// From what the user writes to a CaptureList.
#include <algorithm>
#include <array>

#include "ingest/capture_layers.h"
#include "ingest/capture_list.h"

namespace librarian::ingest {
namespace {

using gpu_exec::CapturePoint;

/// Order within a layer is the order of computation; it is also the canonical order.
enum class Point : std::uint8_t { resid_pre, attn_out, resid_mid, router, mlp_out, resid_post };
constexpr std::array<const char*, 6> kPointNames{"resid_pre", "attn_out", "resid_mid",
                                                 kRouter,     "mlp_out",  "resid_post"};

/// A capture as a place in the computation; sorts in that order.
struct Place {
  std::int32_t layer = 0;  // -1 embed; L pre_norm, L + 1 post_norm
  Point point = Point::resid_post;
  auto operator<=>(const Place&) const = default;  // NOLINT(modernize-use-nullptr): its own 0
};

std::optional<Point> parse_point(std::string_view name) {
  for (std::size_t i = 0; i < kPointNames.size(); ++i) {
    if (name == kPointNames[i]) {
      return static_cast<Point>(i);
    }
  }
  return std::nullopt;
}

/// NAME[@LAYERS][(OPTIONS)] taken apart.
struct Written {
  std::string_view text;  // all of it, for messages
  std::string_view name;
  std::optional<std::string_view> layers;
  std::optional<std::string_view> options;
};

Result<Written> take_apart(std::string_view text) {
  Written written;
  written.text = text;
  written.name = text;
  const std::size_t bracket = text.find('(');
  if (bracket != std::string_view::npos) {
    if (!text.ends_with(')')) {
      return wrong_capture(text, "nothing may follow the options in brackets");
    }
    written.options = text.substr(bracket + 1, text.size() - bracket - 2);
    written.name = text.substr(0, bracket);
  }
  const std::size_t at = written.name.find('@');
  if (at != std::string_view::npos) {
    written.layers = written.name.substr(at + 1);
    written.name = written.name.substr(0, at);
  }
  return written;
}

class Parser {
 public:
  explicit Parser(const CaptureShape& shape) : shape_(shape), layer_count_(shape.layer_count) {}

  Result<void> add(std::string_view text) {
    LIB_TRY(const Written written, take_apart(text));
    const std::string_view name = written.name;
    if (name == kLogitsTopk) {
      return add_logits(written);
    }
    options_ = {};
    if (written.options) {
      Result<ArrayOptions> options = parse_array_options(*written.options);
      if (!options) {
        return wrong_capture(text, options.error().message());
      }
      options_ = *options;
    }
    if (const std::optional<Point> point = parse_point(name)) {
      LIB_TRY(const std::vector<std::int32_t> indices,
              parse_layers(text, written.layers.value_or("all"), layer_count_));
      const bool all = written.layers.value_or("all") == "all";
      for (const std::int32_t layer : indices) {
        // Models with experts begin with layers that have none.
        if (*point != Point::router || !all || shape_.routers.empty() ||
            shape_.routers.contains(layer)) {
          LIB_TRY_VOID(insert(text, {layer, *point}));
        }
      }
      return {};
    }
    if (written.layers) {
      return wrong_capture(text, "'" + std::string(name) + "' takes no layers");
    }
    return add_single(text, name);
  }

  CaptureList finish() const {
    CaptureList list;
    list.layers.resize(static_cast<std::size_t>(layer_count_));
    for (const auto& [place, kept] : places_) {
      list.requested.push_back(canonical_name(place));
      const Place home = home_of(place);
      if (home.layer < 0) {
        list.embed = true;
      } else if (home.layer > layer_count_) {
        list.final_norm = true;
      } else if (home.point == Point::router) {
        list.layers[static_cast<std::size_t>(home.layer)].insert(
            {CapturePoint::router_ids, CapturePoint::router_weights});
        list.routers[home.layer] = shape_.routers.at(home.layer);
      } else {
        static constexpr std::array kCapturePoints{
            CapturePoint::resid_post /* never */, CapturePoint::attn_out, CapturePoint::resid_mid,
            CapturePoint::router_ids /* above */, CapturePoint::mlp_out,  CapturePoint::resid_post};
        list.layers[static_cast<std::size_t>(home.layer)].insert(
            kCapturePoints[static_cast<std::size_t>(home.point)]);
      }
      if (home != place) {
        list.aliases[canonical_name(place)] = canonical_name(home);
      }
      if (kept.options != ArrayOptions()) {
        list.options[canonical_name(home)] = kept.options;
      }
    }
    if (logits_) {
      list.requested.emplace_back(kLogitsTopk);
      list.logits = logits_->first;
    }
    return list;
  }

 private:
  struct Kept {
    ArrayOptions options;
    std::string text;  // As written, for the message about a second one.
  };

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
      return wrong_capture(text, "layer " + std::to_string(place.layer) +
                                     " adds attention and MLP in one step: it has no resid_mid");
    }
    if (place.point == Point::router) {
      if (!shape_.routers.contains(place.layer)) {
        return wrong_capture(text, "layer " + std::to_string(place.layer) +
                                       " has no mixture of experts, so no router");
      }
      if (options_.lossy()) {
        return wrong_capture(text,
                             "a router's choices are kept as they are; it takes positions "
                             "only");
      }
    }
    if (place == post_norm() && !shape_.final_norm) {
      return wrong_capture(text,
                           "this model has no norm after its last layer; its last state is "
                           "final.pre_norm");
    }
    const auto [first, fresh] =
        homes_.try_emplace(home_of(place), Kept{options_, std::string(text)});
    if (!fresh && first->second.options != options_) {
      return wrong_capture(text, "the same tensor as '" + first->second.text +
                                     "', asked for in another way; a store keeps each tensor once");
    }
    places_.insert({place, first->second});
    return {};
  }

  Result<void> add_single(std::string_view text, std::string_view name) {
    if (name == "embed" || name == "hook_embed") {
      return insert(text, embed());
    }
    if (name == "final.pre_norm") {
      return insert(text, pre_norm());
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
    if (name == "eagle3" || name.starts_with("dflash:")) {
      return add_draft_layers(text, name);
    }
    return wrong_capture(
        text,
        "no such capture; there are embed, resid_pre, resid_mid, resid_post, attn_out, router, "
        "mlp_out, final.pre_norm, final.post_norm, logits.topk, hf:i, vllm:i, eagle3, dflash:k");
  }

  /// hf:i and vllm:i name resid_pre of layer i; their last one differs: after or before the norm.
  Result<void> add_hidden_state(std::string_view text, std::string_view name) {
    const bool hf = name.starts_with("hf:");
    const std::optional<std::int64_t> parsed = parse_integer(name.substr(name.find(':') + 1));
    const std::int64_t index =
        parsed.value_or(-1000000) + (parsed.value_or(0) < 0 ? layer_count_ + 1 : 0);
    if (!parsed || index < 0 || index > layer_count_) {
      return wrong_capture(text, "the index must be 0 to " + std::to_string(layer_count_));
    }
    if (index == layer_count_) {
      // transformers' last state is the norm's output, where there is a norm.
      return insert(text, hf && shape_.final_norm ? post_norm() : pre_norm());
    }
    return insert(text, {static_cast<std::int32_t>(index), Point::resid_pre});
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
      return wrong_capture(text,
                           "write blocks.N.NAME with NAME one of resid_pre, resid_mid, resid_post, "
                           "attn_out, router, mlp_out");
    }
    LIB_TRY(const std::int32_t index, layer_index(text, *layer, layer_count_));
    return insert(text, {index, *point});
  }

  Result<void> add_logits(const Written& written) {
    if (written.layers) {
      return wrong_capture(written.text, "'logits.topk' takes no layers");
    }
    LogitsTopk logits;
    if (shape_.vocab_size != 0) {
      logits.k = std::min(logits.k, shape_.vocab_size);
    }
    if (written.options) {
      Result<LogitsTopk> parsed = parse_logits_options(*written.options, shape_.vocab_size);
      if (!parsed) {
        return wrong_capture(written.text, parsed.error().message());
      }
      logits = *parsed;
    }
    if (logits_ && logits_->first != logits) {
      return wrong_capture(written.text, "asked for in another way than '" + logits_->second +
                                             "'; a store keeps logits.topk once");
    }
    logits_ = {logits, std::string(written.text)};
    return {};
  }

  /// What a draft model of a kind is trained on: some layers, and the state before the last norm.
  Result<void> add_draft_layers(std::string_view text, std::string_view name) {
    if (options_.positions.kind != Positions::Kind::all) {
      return wrong_capture(text, "a draft is trained on all positions; leave out positions");
    }
    constexpr std::int32_t kLayersMin = 4;
    if (layer_count_ < kLayersMin) {
      return wrong_capture(
          text, "for models of at least 4 layers; this one has " + std::to_string(layer_count_));
    }
    std::vector<std::int32_t> layers{1, layer_count_ / 2 - 1, layer_count_ - 4};
    if (name != "eagle3") {
      const std::optional<std::int64_t> count = parse_integer(name.substr(name.find(':') + 1));
      if (!count || *count < 1 || *count > layer_count_ - 3) {
        return wrong_capture(text, "the number must be 1 to " + std::to_string(layer_count_ - 3));
      }
      layers = dflash_layers(*count);
    }
    for (const std::int32_t layer : layers) {
      LIB_TRY_VOID(insert(text, {layer, Point::resid_post}));
    }
    return insert(text, pre_norm());
  }

  /// @source DFlash's build_target_layer_ids(): evenly from layer 1 to L - 3, rounded half to even.
  std::vector<std::int32_t> dflash_layers(std::int64_t count) const {
    if (count == 1) {
      return {layer_count_ / 2};
    }
    std::vector<std::int32_t> layers;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t whole = 1 + i * (layer_count_ - 4) / (count - 1);
      const std::int64_t rest = 2 * (i * (layer_count_ - 4) % (count - 1));
      const bool up = rest > count - 1 || (rest == count - 1 && whole % 2 != 0);
      layers.push_back(static_cast<std::int32_t>(whole + (up ? 1 : 0)));
    }
    return layers;
  }

  const CaptureShape& shape_;
  std::int32_t layer_count_;
  ArrayOptions options_;          // Of the capture being added.
  std::map<Place, Kept> places_;  // As asked for.
  std::map<Place, Kept> homes_;   // Where they are written.
  std::optional<std::pair<LogitsTopk, std::string>> logits_;
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
      return wrong_capture(text, "the brackets do not match");
    }
    if (c == ',' && depth == 0) {
      std::string_view item = text.substr(begin, i - begin);
      item.remove_prefix(std::min(item.find_first_not_of(' '), item.size()));
      if (item.empty()) {
        return wrong_capture(text, "an empty capture between commas");
      }
      items.push_back(item);
      begin = i + 1;
    }
  }
  return items;
}

}  // namespace

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

}  // namespace librarian::ingest
