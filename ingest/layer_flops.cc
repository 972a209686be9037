#include "ingest/layer_flops.h"

#include <algorithm>

namespace librarian::ingest {

double layer_flops(const gpu_exec::ModelSpec& model, std::uint32_t layer,
                   std::span<const std::int64_t> offsets) {
  const gpu_exec::LayerSpec& spec = model.layers[layer];
  const double hidden = model.hidden_size;
  const double query_width = static_cast<double>(spec.attention.heads) * spec.attention.head_dim;
  const double key_width = static_cast<double>(spec.attention.kv_heads) * spec.attention.head_dim;
  const double parameters =
      hidden * (2 * query_width + 2 * key_width) + 3.0 * hidden * spec.mlp.width;
  double key_visits = 0;  // Sum over queries of the keys they see.
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
    const auto length = static_cast<double>(offsets[i + 1] - offsets[i]);
    const double window =
        spec.attention.window == 0 ? length : std::min<double>(spec.attention.window, length);
    // Queries before the window is full see one key more each; the others see `window`.
    key_visits += window * (window + 1) / 2 + (length - window) * window;
  }
  const auto tokens = static_cast<double>(offsets.back() - offsets.front());
  return 2 * parameters * tokens + 4 * query_width * key_visits;
}

}  // namespace librarian::ingest
