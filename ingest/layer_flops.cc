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

/// Of what each token is multiplied with. Keys and values that are expanded again for the blocks of
/// a long sample do not count.
double attention_parameters(const gpu_exec::AttentionSpec& attention, double hidden) {
  const double heads = attention.heads;
  const gpu_exec::LatentSpec& latent = attention.latent;
  const double out = hidden * heads * attention.value_dim();
  if (latent.kv_rank == 0) {
    return out + hidden * attention.head_dim * (heads + 2.0 * attention.kv_heads);
  }
  const double queries = heads * attention.head_dim;
  const double q = latent.q_rank == 0 ? hidden * queries : (hidden + queries) * latent.q_rank;
  const double kv = hidden * (latent.kv_rank + latent.rope_dim) +
                    heads * (latent.nope_dim + latent.value_dim) * latent.kv_rank;
  return out + q + kv;
}

double mlp_parameters(const gpu_exec::LayerSpec& layer, double hidden) {
  const gpu_exec::MoeSpec& moe = layer.moe;
  if (moe.experts == 0) {
    return (layer.mlp.gated ? 3 : 2) * hidden * layer.mlp.width;
  }
  return hidden * moe.experts + 3 * hidden * (moe.top_k * double{1} * moe.width + moe.shared_width);
}

}  // namespace

double layer_flops(const gpu_exec::ModelSpec& model, std::uint32_t layer,
                   std::span<const std::int64_t> offsets) {
  const gpu_exec::LayerSpec& spec = model.layers[layer];
  const double hidden = model.hidden_size;
  const double query_width = static_cast<double>(spec.attention.heads) * spec.attention.head_dim;
  const double value_width = static_cast<double>(spec.attention.heads) * spec.attention.value_dim();
  const double parameters =
      attention_parameters(spec.attention, hidden) + mlp_parameters(spec, hidden);
  double key_visits = 0;
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
    key_visits += keys_seen(spec.attention, static_cast<double>(offsets[i + 1] - offsets[i]));
  }
  const auto tokens = static_cast<double>(offsets.back() - offsets.front());
  return 2 * parameters * tokens + 2 * (query_width + value_width) * key_visits;
}

}  // namespace librarian::ingest
