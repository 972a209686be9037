// Goal: a config that is accepted is a model whose sizes can be multiplied without a doubt.
// Method: the input as config.json; what is accepted must keep the promises of ModelSpec.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "gpu_exec/device.h"
#include "weightmap/model_config.h"

using namespace librarian;

namespace {

/// Every tensor has a name and a shape that can be multiplied.
void check_tensors(const weightmap::ModelConfig& config, const gpu_exec::LayerSpec& layer,
                   const std::vector<gpu_exec::WeightRole>& roles) {
  for (const gpu_exec::WeightRole role : roles) {
    LIB_CHECK(!weightmap::tensor_name(config.names, "", 0, role).empty());
    for (const std::uint64_t extent : gpu_exec::weight_shape(config.spec, layer, role)) {
      LIB_CHECK(extent > 0 && extent < 1ULL << 32U);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto config = weightmap::parse_model_config(
      std::string_view(reinterpret_cast<const char*>(data), size), "CONFIG");
  if (!config) {
    return 0;
  }
  const gpu_exec::ModelSpec& spec = config->spec;
  LIB_CHECK(spec.hidden_size > 0 && spec.vocab_size > 0 && !spec.layers.empty());
  LIB_CHECK(std::isfinite(spec.norm.epsilon) && spec.norm.epsilon >= 0);
  for (const gpu_exec::LayerSpec& layer : spec.layers) {
    const gpu_exec::AttentionSpec& attention = layer.attention;
    LIB_CHECK(attention.kv_heads > 0 && attention.heads % attention.kv_heads == 0);
    LIB_CHECK(attention.head_dim >= 2 && attention.head_dim % 2 == 0);
    LIB_CHECK(attention.head_dim <= gpu_exec::kHeadDimMax);
    LIB_CHECK(attention.rope.rotary_dim <= attention.head_dim);
    LIB_CHECK(std::isfinite(attention.scale) && std::isfinite(attention.rope.cos_sin_multiplier));
    for (const std::uint64_t rows : {1ULL, attention.rope.short_rows_max + 1ULL, 1ULL << 30U}) {
      const std::vector<float> frequencies = gpu_exec::rope_frequencies(attention.rope, rows);
      LIB_CHECK(frequencies.size() == attention.rope.rotary_dim / 2);
      for (const float frequency : frequencies) {
        LIB_CHECK(std::isfinite(frequency) && frequency >= 0);
      }
    }
    check_tensors(*config, layer, gpu_exec::weight_roles(spec, layer));
  }
  check_tensors(*config, spec.layers.front(), gpu_exec::embedding_roles(spec));
  check_tensors(*config, spec.layers.front(), gpu_exec::final_roles(spec));
  return 0;
}
