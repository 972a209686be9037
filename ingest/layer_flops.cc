#include "ingest/layer_flops.h"

#include <algorithm>
#include <cmath>

namespace librarian::ingest {
namespace {

/// Sum over the queries of a sample of the keys each of them sees.
double keys_seen(const gpu_exec::AttentionSpec& attention, double length) {
  if (!attention.causal) {
    return length * length;
  }
  if (attention.chunk != 0) {
    const double chunk = attention.chunk;
    const double whole = std::floor(length / chunk);
    const double rest = length - whole * chunk;
    return whole * chunk * (chunk + 1) / 2 + rest * (rest + 1) / 2;
  }
  const double window = attention.window == 0 ? length : std::min<double>(attention.window, length);
  // Queries before the window is full see one key more each; the others see `window`.
  return window * (window + 1) / 2 + (length - window) * window;
}

}  // namespace

double layer_flops(const gpu_exec::ModelSpec& model, std::uint32_t layer,
                   std::span<const std::int64_t> offsets) {
  const gpu_exec::LayerSpec& spec = model.layers[layer];
  const double hidden = model.hidden_size;
  const double query_width = static_cast<double>(spec.attention.heads) * spec.attention.head_dim;
  const double key_width = static_cast<double>(spec.attention.kv_heads) * spec.attention.head_dim;
  const double mlp_matrices = spec.mlp.gated ? 3 : 2;
  const double parameters =
      hidden * (2 * query_width + 2 * key_width) + mlp_matrices * hidden * spec.mlp.width;
  double key_visits = 0;
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
    key_visits += keys_seen(spec.attention, static_cast<double>(offsets[i + 1] - offsets[i]));
  }
  const auto tokens = static_cast<double>(offsets.back() - offsets.front());
  return 2 * parameters * tokens + 4 * query_width * key_visits;
}

}  // namespace librarian::ingest
