#include "ingest/capture_list.h"

#include <algorithm>
#include <array>

namespace librarian::ingest {
namespace {

using gpu_exec::CapturePoint;

constexpr std::array kPointsInOrder{CapturePoint::attn_out, CapturePoint::resid_mid,
                                    CapturePoint::mlp_out, CapturePoint::resid_post};

}  // namespace

CaptureShape capture_shape(const gpu_exec::ModelSpec& model) {
  CaptureShape shape;
  shape.layer_count = static_cast<std::int32_t>(model.layers.size());
  shape.final_norm = model.final_norm;
  shape.vocab_size = model.vocab_size;
  for (std::int32_t layer = 0; layer < shape.layer_count; ++layer) {
    const gpu_exec::LayerSpec& spec = model.layers[static_cast<std::size_t>(layer)];
    if (spec.residual == gpu_exec::Residual::parallel) {
      shape.without_mid.push_back(layer);
    }
    if (spec.moe.experts != 0) {
      shape.routers[layer] = spec.moe.top_k;
    }
  }
  return shape;
}

std::string capture_array_name(std::int32_t layer, CapturePoint point) {
  const char* name = point == CapturePoint::attn_out         ? "attn_out"
                     : point == CapturePoint::resid_mid      ? "resid_mid"
                     : point == CapturePoint::router_ids     ? "router.ids"
                     : point == CapturePoint::router_weights ? "router.weights"
                     : point == CapturePoint::mlp_out        ? "mlp_out"
                                                             : "resid_post";
  return "blocks." + std::to_string(layer) + "." + name;
}

std::int32_t CaptureList::last_layer() const {
  const auto count = static_cast<std::int32_t>(layers.size());
  if (final_norm || logits) {
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

ArrayOptions CaptureList::options_of(const std::string& array) const {
  const auto found = options.find(array);
  return found == options.end() ? ArrayOptions() : found->second;
}

bool CaptureList::keeps_state_of(std::int32_t layer) const {
  if (layer < 0) {
    return embed && options_of("embed").complete();
  }
  return layers[static_cast<std::size_t>(layer)].contains(CapturePoint::resid_post) &&
         options_of(capture_array_name(layer, CapturePoint::resid_post)).complete();
}

std::vector<std::string> CaptureList::canonical() const {
  std::vector<std::string> names;
  for (const std::string& name : requested) {
    const auto alias = aliases.find(name);
    names.push_back(name +
                    (logits && name == kLogitsTopk
                         ? logits->text()
                         : options_of(alias == aliases.end() ? name : alias->second).text()));
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
  } else if (canonical.starts_with("blocks.")) {
    const std::size_t dot = canonical.find('.', 7);
    const std::string point = canonical.substr(dot + 1);
    const auto layer = static_cast<std::int32_t>(std::stol(canonical.substr(7, dot - 7)));
    if (point == "resid_pre") {
      numbered(layer);
    } else if (point == "resid_post") {
      numbered(layer + 1);
    }
    if (point != kRouter) {
      names.transformer_lens = canonical.substr(0, dot + 1) + "hook_" + point;
    }
  }
  return names;
}

}  // namespace librarian::ingest
