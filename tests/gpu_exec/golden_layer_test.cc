// The layer against transformers: goldens under tests/golden, see the README there.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/json.h"
#include "tests/gpu_exec/exec_testing.h"

namespace librarian::gpu_exec {
namespace {

std::string read_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

struct Tensor {
  DType type = DType::f32;
  Bytes bytes;
};

/// Adds the float tensors of one safetensors file.
void read_tensors(const std::filesystem::path& path, std::map<std::string, Tensor>& tensors) {
  const std::string text = read_text(path);
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, text.data(), sizeof header_bytes);
  const auto header = parse_json(std::string_view(text).substr(8, header_bytes), path.string());
  ASSERT_TRUE(header) << header.error().message();
  const std::map<std::string, DType> types = {
      {"F32", DType::f32}, {"F16", DType::f16}, {"BF16", DType::bf16}};
  for (const auto& [name, entry] : header->items()) {
    const auto type = name == "__metadata__" ? types.end() : types.find(entry["dtype"]);
    if (type == types.end()) {
      continue;
    }
    const auto* data = reinterpret_cast<const std::byte*>(text.data()) + 8 + header_bytes;
    const std::uint64_t begin = entry["data_offsets"][0];
    const std::uint64_t end = entry["data_offsets"][1];
    tensors[name] = {type->second, Bytes(data + begin, data + end)};
  }
}

struct Golden {
  Json config, meta;
  ModelSpec model;
  std::map<std::string, Tensor> weights, f32;
};

Golden read_golden(const std::string& family) {
  const std::filesystem::path folder = std::filesystem::path(LIBRARIAN_GOLDEN_DIR) / family;
  Golden golden;
  golden.config = *parse_json(read_text(folder / "model/config.json"), "config.json");
  golden.meta = *parse_json(read_text(folder / "meta.json"), "meta.json");
  read_tensors(folder / "golden_f32.safetensors", golden.f32);
  for (const auto& file : std::filesystem::directory_iterator(folder / "model")) {
    if (file.path().extension() == ".safetensors") {
      read_tensors(file.path(), golden.weights);
    }
  }
  const Json& config = golden.config;
  const bool is_qwen2 = config["model_type"] == "qwen2";
  LayerSpec layer;
  layer.attention.heads = config["num_attention_heads"];
  layer.attention.kv_heads = config["num_key_value_heads"];
  const std::uint32_t hidden = config["hidden_size"];
  layer.attention.head_dim = config.value("head_dim", hidden / layer.attention.heads);
  layer.attention.scale = 1.0F / std::sqrt(static_cast<float>(layer.attention.head_dim));
  layer.attention.qkv_bias = is_qwen2 || config.value("attention_bias", false);
  layer.attention.out_bias = config.value("attention_bias", false);
  layer.attention.qk_norm = config["model_type"] == "qwen3";
  if (config.contains("sliding_window") && config["sliding_window"].is_number()) {
    layer.attention.window = config["sliding_window"];
  }
  layer.attention.rope.rotary_dim = layer.attention.head_dim;
  const double theta = config["rope_theta"];
  for (std::uint32_t i = 0; i < layer.attention.head_dim; i += 2) {
    layer.attention.rope.inverse_frequency.push_back(
        static_cast<float>(std::pow(theta, -static_cast<double>(i) / layer.attention.head_dim)));
  }
  layer.mlp.width = config["intermediate_size"];
  layer.mlp.bias = config.value("mlp_bias", false);
  golden.model.hidden_size = hidden;
  golden.model.norm_epsilon = config["rms_norm_eps"];
  golden.model.layers.assign(config["num_hidden_layers"], layer);
  return golden;
}

std::string tensor_name(std::size_t layer, WeightRole role) {
  static const std::map<WeightRole, std::string> kNames = {
      {WeightRole::attention_norm, "input_layernorm.weight"},
      {WeightRole::q_weight, "self_attn.q_proj.weight"},
      {WeightRole::q_bias, "self_attn.q_proj.bias"},
      {WeightRole::k_weight, "self_attn.k_proj.weight"},
      {WeightRole::k_bias, "self_attn.k_proj.bias"},
      {WeightRole::v_weight, "self_attn.v_proj.weight"},
      {WeightRole::v_bias, "self_attn.v_proj.bias"},
      {WeightRole::q_norm, "self_attn.q_norm.weight"},
      {WeightRole::k_norm, "self_attn.k_norm.weight"},
      {WeightRole::out_weight, "self_attn.o_proj.weight"},
      {WeightRole::out_bias, "self_attn.o_proj.bias"},
      {WeightRole::mlp_norm, "post_attention_layernorm.weight"},
      {WeightRole::gate_weight, "mlp.gate_proj.weight"},
      {WeightRole::gate_bias, "mlp.gate_proj.bias"},
      {WeightRole::up_weight, "mlp.up_proj.weight"},
      {WeightRole::up_bias, "mlp.up_proj.bias"},
      {WeightRole::down_weight, "mlp.down_proj.weight"},
      {WeightRole::down_bias, "mlp.down_proj.bias"}};
  return "model.layers." + std::to_string(layer) + "." + kNames.at(role);
}

/// Runs all layers from the golden embedding; captures by their names, as f32 values.
std::map<std::string, std::vector<float>> run_model(const Golden& golden, DType dtype, CpuIsa isa) {
  const auto device = cpu_device(isa, 2);
  const std::vector<Segment> segments =
      segments_of(golden.meta["sample_lengths"].get<std::vector<std::uint64_t>>());
  const std::uint64_t rows = segments.back().row_begin + segments.back().rows;
  ExecutorOptions options;
  options.dtype = dtype;
  options.block_rows_max = rows;
  auto executor = LayerExecutor::create(golden.model, options, *device);
  EXPECT_TRUE(executor);
  std::map<std::string, std::vector<float>> captures;
  Bytes state = to_bytes(to_floats(golden.f32.at("embed").bytes, DType::f32), dtype);
  for (std::size_t i = 0; i < golden.model.layers.size(); ++i) {
    (*executor)->begin_layer(static_cast<std::uint32_t>(i));
    for (const WeightRole role : weight_roles(golden.model.layers[i])) {
      const Tensor& tensor = golden.weights.at(tensor_name(i, role));
      const auto loaded = (*executor)->load(role, tensor.type, tensor.bytes);
      EXPECT_TRUE(loaded) << loaded.error().message();
    }
    RecordingSink sink;
    state = run_block(**executor, segments, std::move(state), sink);
    const std::string prefix = "blocks." + std::to_string(i) + ".";
    captures[prefix + "attn_out"] = to_floats(sink.rows[CapturePoint::attn_out], dtype);
    captures[prefix + "resid_mid"] = to_floats(sink.rows[CapturePoint::resid_mid], dtype);
    captures[prefix + "mlp_out"] = to_floats(sink.rows[CapturePoint::mlp_out], dtype);
    captures[prefix + "resid_post"] = to_floats(sink.rows[CapturePoint::resid_post], dtype);
  }
  const Tensor& norm = golden.weights.at("model.norm.weight");
  EXPECT_TRUE((*executor)->load(WeightRole::final_norm, norm.type, norm.bytes));
  Bytes normed(state.size());
  EXPECT_TRUE((*executor)->run_final_norm(state, normed));
  captures["final.post_norm"] = to_floats(normed, dtype);
  return captures;
}

/// |actual - expected| / |expected| of each row, sorted.
std::vector<double> row_errors(const std::vector<float>& actual, const std::vector<float>& expected,
                               std::size_t width) {
  EXPECT_EQ(actual.size(), expected.size());
  std::vector<double> errors;
  for (std::size_t row = 0; row < expected.size(); row += width) {
    double difference = 0;
    double norm = 0;
    for (std::size_t i = row; i < row + width; ++i) {
      difference += std::pow(static_cast<double>(actual[i]) - expected[i], 2);
      norm += std::pow(static_cast<double>(expected[i]), 2);
    }
    errors.push_back(std::sqrt(difference / norm));
  }
  std::sort(errors.begin(), errors.end());
  return errors;
}

class GoldenLayer : public testing::TestWithParam<const char*> {};

// Goal: in f32 every capture is transformers' own, to 2e-5 of each token's length.
// Method: all layers in a row from the golden embedding, on each path of this machine.
TEST_P(GoldenLayer, MatchesTransformersInF32) {
  const Golden golden = read_golden(GetParam());
  for (const CpuIsa isa : machine_isas()) {
    for (const auto& [name, values] : run_model(golden, DType::f32, isa)) {
      const std::vector<float> expected = to_floats(golden.f32.at(name).bytes, DType::f32);
      EXPECT_LE(row_errors(values, expected, golden.model.hidden_size).back(), 2e-5)
          << name << " on " << cpu_isa_name(isa);
    }
  }
}

// Goal: in bf16 we are no further from the f32 truth than transformers' own bf16 run.
// Method: the median over tokens against the one that the generator measured for transformers.
TEST_P(GoldenLayer, IsAsCloseToTheTruthInBf16AsTransformers) {
  const Golden golden = read_golden(GetParam());
  for (const CpuIsa isa : machine_isas()) {
    for (const auto& [name, values] : run_model(golden, DType::bf16, isa)) {
      const std::vector<float> expected = to_floats(golden.f32.at(name).bytes, DType::f32);
      const auto errors = row_errors(values, expected, golden.model.hidden_size);
      const double theirs = golden.meta["median_error_against_f32"][name];
      EXPECT_LE(errors[errors.size() / 2], 1.15 * theirs) << name << " on " << cpu_isa_name(isa);
      EXPECT_GT(errors[errors.size() / 2], 0.0) << name << ": nothing was rounded";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenLayer,
                         testing::Values("llama_bias", "qwen2", "qwen3", "mistral"),
                         [](const auto& family) { return std::string(family.param); });

}  // namespace
}  // namespace librarian::gpu_exec
