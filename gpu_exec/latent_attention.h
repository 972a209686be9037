#pragma once
/// Multi-head latent attention: some heads at a time, so that expanded keys and values take no more
/// memory than those of ordinary attention. Private to gpu_exec.

#include <algorithm>
#include <cstdint>

#include "gpu_exec/model_spec.h"

namespace librarian::gpu_exec {

/// Keys and values of one token that are expanded at a time: as many as eight heads of 128 have in
/// ordinary attention, and enough outputs for products to be fast.
inline constexpr std::uint64_t kLatentTileWidth = 2048;

/// What kv_b_weight makes of a latent for one head: {key's nope_dim, value}.
inline std::uint64_t latent_head_width(const LatentSpec& latent) {
  return std::uint64_t{latent.nope_dim} + latent.value_dim;
}

/// Heads of a tile; the last tile may have fewer. A device may sum a tile's products otherwise than
/// those of another width, so the cut belongs to the numbers: it depends on the layer alone.
inline std::uint64_t latent_tile_heads(const AttentionSpec& attention) {
  return std::clamp<std::uint64_t>(kLatentTileWidth / latent_head_width(attention.latent), 1,
                                   attention.heads);
}

}  // namespace librarian::gpu_exec
