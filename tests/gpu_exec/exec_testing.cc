#include "tests/gpu_exec/exec_testing.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <new>

namespace librarian::gpu_exec {

std::uint64_t TestRandom::next() {  // xorshift64*
  state_ ^= state_ >> 12U;
  state_ ^= state_ << 25U;
  state_ ^= state_ >> 27U;
  return state_ * 2685821657736338717ULL;
}

float TestRandom::unit() {
  return static_cast<float>(static_cast<double>(next() >> 11U) * 0x1p-52 - 1.0);
}

std::vector<float> TestRandom::vector(std::size_t count, float scale, float offset) {
  std::vector<float> values(count);
  for (float& value : values) {
    value = offset + scale * unit();
  }
  return values;
}

Bytes to_bytes(const std::vector<float>& values, DType type) {
  Bytes bytes(values.size() * dtype_bytes(type));
  convert_elements(DType::f32, std::as_bytes(std::span(values)), type, bytes);
  return bytes;
}

std::vector<float> to_floats(std::span<const std::byte> bytes, DType type) {
  std::vector<float> values(bytes.size() / dtype_bytes(type));
  convert_elements(type, bytes, DType::f32, std::as_writable_bytes(std::span(values)));
  return values;
}

std::vector<CpuIsa> machine_isas() {
  std::vector<CpuIsa> isas;
  for (const CpuIsa isa : kCpuIsas) {
    if (cpu_has_isa(isa)) {
      isas.push_back(isa);
    }
  }
  return isas;
}

std::unique_ptr<Device> cpu_device(CpuIsa isa, int threads) {
  auto device = make_cpu_device(isa, threads);
  EXPECT_TRUE(device);
  return *std::move(device);
}

DeviceMemory aligned_memory(std::uint64_t bytes) {
  constexpr std::align_val_t kAlignment{64};
  auto* memory = static_cast<std::byte*>(::operator new(bytes, kAlignment));
  std::memset(memory, 0, bytes);
  return DeviceMemory(memory, [](std::byte* at) { ::operator delete(at, kAlignment); });
}

RopeSpec default_rope(std::uint32_t rotary_dim) {
  RopeSpec rope;
  rope.rotary_dim = rotary_dim;
  for (std::uint32_t i = 0; i < rotary_dim; i += 2) {
    rope.inverse_frequency.push_back(
        static_cast<float>(std::pow(10000.0, -static_cast<double>(i) / rotary_dim)));
  }
  return rope;
}

LayerSpec awkward_layer() {
  LayerSpec layer;
  layer.attention.heads = 6;
  layer.attention.kv_heads = 2;
  layer.attention.head_dim = 20;
  layer.attention.scale = 0.25F;
  layer.attention.qkv_bias = true;
  layer.attention.out_bias = true;
  layer.attention.qk_norm = QkNorm::head;
  layer.attention.rope = default_rope(12);
  layer.mlp.width = 301;
  layer.mlp.bias = true;
  return layer;
}

namespace {

constexpr NormSpec kRms{NormKind::rms, false, false, 1e-5F};
constexpr NormSpec kLayerNorm{NormKind::layer, true, false, 1e-5F};

/// Norms behind the modules only, q and k normalised as wholes.
Flavour post_norms() {
  Flavour flavour{"post_norms", awkward_layer(), kRms};
  flavour.layer.attention_norm = flavour.layer.mlp_norm = false;
  flavour.layer.attention_out_norm = flavour.layer.mlp_out_norm = true;
  flavour.layer.attention.qk_norm = QkNorm::full;
  return flavour;
}

Flavour sandwich() {
  Flavour flavour{"sandwich", awkward_layer(), {NormKind::rms, false, true, 1e-5F}};
  flavour.layer.attention_out_norm = flavour.layer.mlp_out_norm = true;
  flavour.layer.mlp.activation = Activation::gelu_tanh;
  return flavour;
}

Flavour parallel_shared() {
  Flavour flavour{"parallel_shared", awkward_layer(), {NormKind::layer, false, false, 1e-5F}};
  flavour.layer.residual = Residual::parallel;
  flavour.layer.mlp_norm = false;
  flavour.layer.attention.qk_norm = QkNorm::head_each;
  flavour.layer.attention.rope.style = RopeStyle::pairs;
  return flavour;
}

Flavour parallel_two() {
  Flavour flavour{"parallel_two", awkward_layer(), kLayerNorm};
  flavour.layer.residual = Residual::parallel;
  flavour.layer.attention.kv_heads = flavour.layer.attention.heads;
  flavour.layer.attention.storage = QkvStorage::per_head;
  flavour.layer.attention.qk_norm = QkNorm::none;
  flavour.layer.mlp.gated = false;
  flavour.layer.mlp.activation = Activation::gelu;
  return flavour;
}

Flavour norm_after() {
  Flavour flavour{"norm_after", awkward_layer(), kLayerNorm};
  flavour.layer.residual = Residual::norm_after;
  flavour.layer.attention_norm = flavour.layer.mlp_norm = false;
  flavour.layer.attention_out_norm = flavour.layer.mlp_out_norm = true;
  flavour.layer.attention.rope = {};
  flavour.layer.attention.qk_norm = QkNorm::none;
  flavour.layer.mlp.gated = false;
  flavour.layer.mlp.activation = Activation::relu;
  return flavour;
}

Flavour grouped() {
  Flavour flavour{"grouped", awkward_layer(), kLayerNorm};
  flavour.layer.attention.storage = QkvStorage::grouped;
  flavour.layer.mlp.gated = false;
  flavour.layer.mlp.activation = Activation::relu_squared;
  return flavour;
}

Flavour transposed() {
  Flavour flavour{"transposed", awkward_layer(), kLayerNorm};
  flavour.layer.transposed = true;
  flavour.layer.attention.storage = QkvStorage::concat;
  flavour.layer.mlp.fused = true;
  flavour.layer.residual_multiplier = 0.3F;
  return flavour;
}

/// Samples of more than 40 tokens turn by other angles; queries are scaled by position.
Flavour by_length() {
  Flavour flavour{"by_length", awkward_layer(), kRms};
  AttentionSpec& attention = flavour.layer.attention;
  attention.storage = QkvStorage::concat;
  attention.rope.short_rows_max = 40;
  for (const float frequency : attention.rope.inverse_frequency) {
    attention.rope.long_inverse_frequency.push_back(frequency * 0.4F);
  }
  attention.temperature_beta = 0.5F;
  attention.temperature_original = 20;
  return flavour;
}

/// Heads are normalised when they have turned; the temperature counts positions from 1.
Flavour turned_first() {
  Flavour flavour{"turned_first", awkward_layer(), {NormKind::rms, false, true, 1e-5F}};
  AttentionSpec& attention = flavour.layer.attention;
  attention.qk_norm_after_rope = true;
  attention.temperature_beta = 0.5F;
  attention.temperature_original = 20;
  attention.temperature_offset = 1;
  return flavour;
}

/// Heads that turn have a norm without weights.
Flavour unit_heads() {
  Flavour flavour{"unit_heads", awkward_layer(), {NormKind::rms, false, false, 0.5F}};
  flavour.layer.attention.qk_norm = QkNorm::unit;
  flavour.layer.attention.qk_norm_after_rope = true;
  flavour.layer.attention.rope.style = RopeStyle::pairs;
  return flavour;
}

/// Heads that do not turn have none.
Flavour unit_heads_without_rope() {
  Flavour flavour = unit_heads();
  flavour.name = "unit_heads_without_rope";
  flavour.layer.attention.rope = {};
  return flavour;
}

LayerSpec latent_layer(const LatentSpec& latent, std::uint32_t heads) {
  LayerSpec layer = awkward_layer();
  AttentionSpec& attention = layer.attention;
  attention.heads = attention.kv_heads = heads;
  attention.head_dim = latent.nope_dim + latent.rope_dim;
  attention.qk_norm = QkNorm::none;
  attention.rope = default_rope(latent.rope_dim);
  attention.latent = latent;
  return layer;
}

/// Narrow values; weights of the latents' norms are not 1 + weight even where others are.
Flavour latent() {
  return {"latent",
          latent_layer({24, 28, 20, 12, 16, 1e-6F, true}, 6),
          {NormKind::rms, false, true, 1e-5F}};
}

/// Queries without a latent of their own, wide values, and all that positions change.
Flavour latent_direct() {
  Flavour flavour{"latent_direct", latent_layer({40, 0, 8, 8, 24, 0.5F, false}, 3), kLayerNorm};
  AttentionSpec& attention = flavour.layer.attention;
  attention.rope.style = RopeStyle::pairs;
  attention.rope.short_rows_max = 40;
  for (const float frequency : attention.rope.inverse_frequency) {
    attention.rope.long_inverse_frequency.push_back(frequency * 0.4F);
  }
  attention.temperature_beta = 0.5F;
  attention.temperature_original = 20;
  attention.temperature_offset = 1;
  attention.sinks = true;
  flavour.layer.residual = Residual::parallel;
  return flavour;
}

/// Heads so large that four of them are expanded at a time.
Flavour latent_tiles() {
  Flavour flavour{"latent_tiles", latent_layer({24, 28, 232, 8, 248, 1e-6F, false}, 5), kRms};
  flavour.layer.attention.scale = 0.1F;
  flavour.layer.attention.alibi = true;
  flavour.layer.attention.sinks = true;
  return flavour;
}

MoeSpec some_experts() {
  MoeSpec moe;
  moe.experts = 7;
  moe.top_k = 3;
  moe.width = 40;
  return moe;
}

/// Biases everywhere, and a shared expert with a gate.
Flavour softmax_experts() {
  Flavour flavour{"softmax_experts", awkward_layer(), kRms};
  MoeSpec& moe = flavour.layer.moe = some_experts();
  moe.bias = moe.router_bias = true;
  moe.shared_width = 52;
  moe.shared_gate = true;
  return flavour;
}

Flavour grouped_experts() {
  Flavour flavour{"grouped_experts", awkward_layer(), kRms};
  MoeSpec& moe = flavour.layer.moe = some_experts();
  moe.experts = 12;
  moe.groups = 4;
  moe.top_groups = 2;
  moe.score = RouterScore::sigmoid;
  moe.select_bias = true;
  moe.multiplier = 2.5F;
  moe.shared_width = 24;
  return flavour;
}

/// Matrices of all experts in one tensor, rows of gate and up in turns.
Flavour interleaved_experts() {
  Flavour flavour{"interleaved_experts", awkward_layer(), kRms};
  MoeSpec& moe = flavour.layer.moe = some_experts();
  moe.storage = ExpertStorage::stacked_transposed;
  moe.fused = moe.interleaved = moe.bias = true;
  flavour.layer.mlp.activation = Activation::clamped_swish;
  return flavour;
}

Flavour scaled_inputs() {
  Flavour flavour{"scaled_inputs", awkward_layer(), {NormKind::rms, false, true, 1e-5F}};
  flavour.layer.attention_out_norm = flavour.layer.mlp_out_norm = true;
  MoeSpec& moe = flavour.layer.moe = some_experts();
  moe.storage = ExpertStorage::stacked;
  moe.fused = true;
  moe.score = RouterScore::sigmoid;
  moe.router_cap = 2;
  moe.renormalise = false;
  moe.input_scaled = true;
  return flavour;
}

/// Every expert for every token, in a parallel layer.
Flavour all_experts() {
  Flavour flavour = parallel_shared();
  flavour.name = "all_experts";
  MoeSpec& moe = flavour.layer.moe = some_experts();
  moe.experts = moe.top_k = 4;
  moe.groups = moe.top_groups = 2;
  moe.group_rank = GroupRank::best;
  moe.storage = ExpertStorage::flat;
  return flavour;
}

bool is_norm_weight(WeightRole role) {
  const std::string name = weight_role_name(role);
  return name.ends_with("_norm");
}

}  // namespace

std::vector<Flavour> flavours() {
  return {post_norms(),      sandwich(),        parallel_shared(),     parallel_two(),
          norm_after(),      grouped(),         transposed(),          by_length(),
          softmax_experts(), grouped_experts(), interleaved_experts(), scaled_inputs(),
          all_experts(),     turned_first(),    unit_heads(),          unit_heads_without_rope(),
          latent(),          latent_direct(),   latent_tiles()};
}

TestLayer make_layer(std::uint32_t hidden, LayerSpec layer, DType weight_type, std::uint64_t seed,
                     NormSpec norm) {
  TestLayer test;
  test.model.hidden_size = hidden;
  test.model.norm = norm;
  test.weight_type = weight_type;
  TestRandom random(seed);
  std::vector<WeightKey> keys = weight_keys(test.model, layer);
  for (const WeightRole role : final_roles(test.model)) {
    keys.emplace_back(role);
  }
  for (const WeightKey& key : keys) {
    const WeightRole role = key.role;
    const auto shape = weight_shape(test.model, layer, role);
    const bool is_matrix = shape.size() == 2 && !is_norm_weight(role);
    const std::size_t count = shape[0] * (shape.size() == 2 ? shape[1] : 1);
    const std::size_t inputs = is_matrix ? shape[weight_transposed(layer, role) ? 0 : 1] : 1;
    const float scale = is_matrix ? 2.0F / std::sqrt(static_cast<float>(inputs)) : 0.3F;
    const float centre = is_norm_weight(role) && !norm.one_plus ? 1.0F : 0.0F;
    test.weights[key] = rounded(random.vector(count, scale, centre), weight_type);
  }
  test.model.layers.push_back(std::move(layer));
  return test;
}

void RecordingSink::begin(std::span<const Block> blocks, std::span<std::byte> state) {
  std::uint64_t rows_in_all = 0;
  for (const Block& block : blocks) {
    rows_in_all += block.rows;
  }
  const std::uint64_t row_bytes = rows_in_all == 0 ? 0 : state.size() / rows_in_all;
  parts_.clear();
  std::uint64_t at = 0;
  for (const Block& block : blocks) {
    parts_.push_back(state.subspan(at, block.rows * row_bytes));
    at += block.rows * row_bytes;
  }
}

Result<void> RecordingSink::capture(CapturePoint point, std::size_t /*block*/,
                                    std::span<const std::byte> bytes) {
  if (failure) {
    return *failure;
  }
  Bytes& to = rows[point];
  to.insert(to.end(), bytes.begin(), bytes.end());
  return {};
}

Result<void> RecordingSink::store(std::size_t block, std::span<std::byte> bytes) {
  EXPECT_EQ(bytes.size(), parts_.at(block).size());
  std::copy(bytes.begin(), bytes.end(), parts_[block].begin());
  return {};
}

void load_weights(LayerExecutor& executor, const TestLayer& layer) {
  for (const auto& [key, values] : layer.weights) {
    // One byte off any alignment: checkpoints give no better.
    const Bytes packed = to_bytes(values, layer.weight_type);
    auto odd = std::make_shared<Bytes>(packed.size() + 1);
    std::memcpy(odd->data() + 1, packed.data(), packed.size());
    std::shared_ptr<const Bytes>& kept = layer.loaded[key];
    if (kept == nullptr || *kept != *odd) {
      kept = std::move(odd);
    }
    const auto loaded = executor.load(key, layer.weight_type, std::span(*kept).subspan(1));
    EXPECT_TRUE(loaded) << loaded.error().message();
  }
}

ExecutorOptions executor_options(const TestLayer& layer, DType dtype, std::uint64_t block_rows_max,
                                 std::uint64_t sample_rows_max) {
  ExecutorOptions options;
  options.dtype = dtype;
  options.weight_dtype_max = layer.weight_type;
  options.block_rows_max = block_rows_max;
  options.sample_rows_max = sample_rows_max;
  options.captures_max = 4;
  return options;
}

std::unique_ptr<LayerExecutor> loaded_executor(const TestLayer& layer, Device& device,
                                               const ExecutorOptions& options) {
  auto executor = LayerExecutor::create(layer.model, options, device);
  EXPECT_TRUE(executor) << executor.error().message();
  (*executor)->begin_layer(0);
  load_weights(**executor, layer);
  return *std::move(executor);
}

std::unique_ptr<LayerExecutor> loaded_executor(const TestLayer& layer, Device& device, DType dtype,
                                               std::uint64_t block_rows_max,
                                               std::uint64_t sample_rows_max) {
  return loaded_executor(layer, device,
                         executor_options(layer, dtype, block_rows_max, sample_rows_max));
}

std::vector<Segment> segments_of(const std::vector<std::uint64_t>& lengths) {
  std::vector<Segment> segments;
  std::uint64_t row = 0;
  for (const std::uint64_t length : lengths) {
    segments.push_back({row, length, 0, length});
    row += length;
  }
  return segments;
}

Bytes run_blocks(LayerExecutor& executor, std::span<const Block> blocks, Bytes state,
                 RecordingSink& sink) {
  sink.begin(blocks, state);
  const auto done = executor.run(blocks, sink, {});
  EXPECT_TRUE(done) << done.error().message();
  return state;
}

Bytes run_block(LayerExecutor& executor, std::span<const Segment> segments, Bytes state,
                RecordingSink& sink) {
  Block block{segments, 0};
  for (const Segment& segment : segments) {
    block.rows += segment.rows;
  }
  return run_blocks(executor, {&block, 1}, std::move(state), sink);
}

}  // namespace librarian::gpu_exec
