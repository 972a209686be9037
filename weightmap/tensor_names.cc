#include "weightmap/tensor_names.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "base/error.h"

namespace librarian::weightmap {
namespace {

using gpu_exec::WeightKey;
using gpu_exec::WeightRole;

/// Before the text model's own prefix in checkpoints of a larger model, newest writer first.
constexpr std::array<std::string_view, 3> kTextPrefixes{"model.language_model.",
                                                        "language_model.model.", "language_model."};
constexpr std::array<std::string_view, 1> kTextHeads{"language_model.lm_head."};
/// Everything of a larger model that no text passes through.
constexpr std::array<std::string_view, 15> kOtherParts{"model.vision_tower.",
                                                       "vision_tower.",
                                                       "model.multi_modal_projector.",
                                                       "model.mm_projector.",
                                                       "multi_modal_projector.",
                                                       "mm_projector.",
                                                       "model.visual.",
                                                       "visual.",
                                                       "model.vision_model.",
                                                       "vision_model.",
                                                       "model.image_newline",
                                                       "image_newline",
                                                       "vision_encoder.",
                                                       "vision_language_adapter.",
                                                       "patch_merger."};

const RoleName* find_role(std::span<const RoleName> rows, WeightRole role) {
  const auto found =
      std::find_if(rows.begin(), rows.end(), [&](const RoleName& row) { return row.role == role; });
  return found == rows.end() ? nullptr : &*found;
}

const RoleName* find_name(std::span<const RoleName> rows, std::string_view name) {
  const auto found =
      std::find_if(rows.begin(), rows.end(), [&](const RoleName& row) { return row.name == name; });
  return found == rows.end() ? nullptr : &*found;
}

/// A number without leading zeros that `text` begins with, and its length; 0: none.
template <typename T>
std::size_t read_number(std::string_view text, T& number) {
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), number);
  const auto digits = static_cast<std::size_t>(end - text.data());
  const bool good = status == std::errc() && text.front() != '-' && (digits == 1 || text[0] != '0');
  return good ? digits : 0;
}

constexpr std::string_view kExpert = "{}";

/// The row of one expert's tensor whose name is `name`, and the expert's number.
const RoleName* find_expert_name(std::span<const RoleName> rows, std::string_view name,
                                 std::uint32_t& expert) {
  for (const RoleName& row : rows) {
    const std::size_t at = row.name.find(kExpert);
    if (at == std::string_view::npos || !name.starts_with(row.name.substr(0, at))) {
      continue;
    }
    const std::string_view rest = name.substr(at);
    const std::size_t digits = read_number(rest, expert);
    if (digits != 0 && rest.substr(digits) == row.name.substr(at + kExpert.size())) {
      return &row;
    }
  }
  return nullptr;
}

/// `rows` hold whole names, and starts of names that end in a dot.
bool covered(std::span<const std::string_view> rows, std::string_view name) {
  return std::any_of(rows.begin(), rows.end(), [&](std::string_view row) {
    return row.ends_with('.') ? name.starts_with(row) : name == row;
  });
}

bool is_buffer(std::string_view name) {
  static constexpr std::array<std::string_view, 6> kEndings{
      "rotary_emb.inv_freq", ".masked_bias",
      // Of the cache of keys and values that servers keep.
      ".k_scale", ".v_scale", ".kv_scale", ".q_scale"};
  return std::any_of(kEndings.begin(), kEndings.end(),
                     [&](std::string_view ending) { return name.ends_with(ending); });
}

bool is_final(WeightRole role) {
  return role == WeightRole::final_norm || role == WeightRole::final_norm_bias;
}

/// The number at the start of `name`, which a dot must follow, and the length of both; 0: none.
std::size_t read_layer(std::string_view name, std::int32_t& layer) {
  const std::size_t digits = read_number(name, layer);
  return digits != 0 && digits < name.size() && name[digits] == '.' ? digits + 1 : 0;
}

}  // namespace

std::string base_prefix(const NameScheme& scheme, std::span<const std::string_view> names) {
  const RoleName* embedding = find_role(scheme.family->outside, WeightRole::embedding);
  LIB_CHECK(embedding != nullptr && !scheme.family->prefixes.empty());
  std::vector<std::string_view> candidates;
  if (scheme.multimodal) {
    candidates.assign(kTextPrefixes.begin(), kTextPrefixes.end());
  }
  candidates.insert(candidates.end(), scheme.family->prefixes.begin(),
                    scheme.family->prefixes.end());
  for (const std::string_view prefix : candidates) {
    const std::string wanted = std::string(prefix).append(embedding->name);
    if (std::find(names.begin(), names.end(), wanted) != names.end()) {
      return std::string(prefix);
    }
  }
  return std::string(candidates.front());
}

NamedTensor classify_tensor(std::string_view name, const NameScheme& scheme,
                            std::string_view prefix, std::int32_t layers) {
  using Kind = NamedTensor::Kind;
  const TensorNames& family = *scheme.family;
  if (is_buffer(name) || (scheme.multimodal && covered(kOtherParts, name))) {
    return {Kind::unused, 0, {}};
  }
  if (covered(family.heads, name) || (scheme.multimodal && covered(kTextHeads, name))) {
    return {Kind::head, 0, {}};
  }
  if (!name.starts_with(prefix)) {
    return {};
  }
  name.remove_prefix(prefix.size());
  if (const RoleName* row = find_name(family.outside, name)) {
    return {Kind::weight, is_final(row->role) ? layers : -1, row->role};
  }
  if (covered(family.buffers_outside, name)) {
    return {Kind::unused, 0, {}};
  }
  if (!name.starts_with(family.layers)) {
    return {};
  }
  name.remove_prefix(family.layers.size());
  std::int32_t layer = -1;
  const std::size_t digits = read_layer(name, layer);
  if (digits != 0 && layer >= layers && layer < layers + scheme.layers_beyond) {
    return {Kind::unused, 0, {}};
  }
  if (digits == 0 || layer >= layers) {
    return {};  // A layer beyond: config.json is of another model.
  }
  name.remove_prefix(digits);
  if (name.find(kExpert) != std::string_view::npos) {
    return {};  // It stands for a number in our tables only.
  }
  if (const RoleName* row = find_name(family.inside, name)) {
    return {Kind::weight, layer, row->role, gpu_exec::is_expert_role(row->role)};
  }
  std::uint32_t expert = 0;
  if (const RoleName* row = find_expert_name(family.inside, name, expert)) {
    return {Kind::weight, layer, WeightKey(row->role, expert)};
  }
  if (covered(family.buffers_inside, name)) {
    return {Kind::unused, 0, {}};
  }
  return {};
}

bool is_head_name(std::string_view name, const NameScheme& scheme, WeightRole role) {
  const std::string_view wanted =
      role == WeightRole::head ? scheme.family->head : scheme.family->head_bias;
  if (wanted.empty()) {
    return false;
  }
  constexpr std::string_view kTextModel = "language_model.";
  if (scheme.multimodal && name.starts_with(kTextModel)) {
    name.remove_prefix(kTextModel.size());
  }
  return name == wanted;
}

std::string tensor_name(const NameScheme& scheme, std::string_view prefix, std::int32_t layer,
                        const WeightKey& key) {
  const TensorNames& family = *scheme.family;
  std::string name(prefix);
  if (const RoleName* row = find_role(family.outside, key.role)) {
    return name.append(row->name);
  }
  const RoleName* row = find_role(family.inside, key.role);
  LIB_CHECK(row != nullptr);
  name.append(family.layers).append(std::to_string(layer)).append(".");
  if (!gpu_exec::is_expert_role(key.role)) {
    return name.append(row->name);
  }
  const std::string expert = std::to_string(key.expert);
  const std::size_t at = row->name.find(kExpert);
  if (at == std::string_view::npos) {
    return name.append(row->name).append("[").append(expert).append("]");
  }
  return name.append(row->name.substr(0, at))
      .append(expert)
      .append(row->name.substr(at + kExpert.size()));
}

}  // namespace librarian::weightmap
