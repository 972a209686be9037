// Goal: the models that this is for plan within 16 GiB of a GPU's memory, from their headers alone.
// Method: checkpoints that are only headers, planned as jobs for the CUDA device; whoever asks for
// a byte of weights ends the test.
#include <gtest/gtest.h>

#include <cstring>
#include <iostream>
#include <memory>

#include "base/json.h"
#include "base/units.h"
#include "gpu_exec/cuda_device.h"
#include "ingest/job.h"
#include "tests/ingest/tiny_model.h"
#include "tests/support/emulated_cuda.h"
#include "tests/support/memory_file_system.h"

namespace librarian::ingest {
namespace {

using weightmap::remote::FetchPiece;
using weightmap::remote::TransferRequest;
using weightmap::remote::TransferResult;

constexpr std::uint64_t kDeviceBytes = 16 * kGiB;
constexpr std::uint64_t kContextBytes = kGiB;  // More than a context with its modules takes.
constexpr std::uint64_t kHostBytes = 64 * kGiB;
constexpr std::uint64_t kLibraryRows = 2048;

struct Shape {
  const char* name;
  std::uint64_t layers, hidden, heads, kv_heads, width, vocab;
  const char* type;  ///< As safetensors calls it.
  std::int64_t longest_sample;
  std::uint64_t head_dim() const { return hidden / heads; }
  std::uint64_t element_bytes() const { return std::string(type) == "F32" ? 4 : 2; }
};
void PrintTo(const Shape& shape, std::ostream* out) { *out << shape.name; }

/// A weight file of which only the header is there.
struct HeaderOnly {
  std::string head;
  std::uint64_t size = 0;
};

/// Llama layout, a file for each layer and one for the rest.
std::map<std::string, HeaderOnly> files_of(const Shape& shape) {
  std::map<std::string, HeaderOnly> files;
  Json weight_map = Json::object();
  Json header;
  std::uint64_t at = 0;
  const auto add = [&](const std::string& name, const std::vector<std::uint64_t>& extents) {
    std::uint64_t bytes = shape.element_bytes();
    for (const std::uint64_t extent : extents) {
      bytes *= extent;
    }
    header[name] = {{"dtype", shape.type}, {"shape", extents}, {"data_offsets", {at, at + bytes}}};
    at += bytes;
  };
  const auto end_file = [&](const std::string& file) {
    for (const auto& [name, entry] : header.items()) {
      weight_map[name] = file;
    }
    const std::string json = header.dump();
    const std::uint64_t length = json.size();
    std::string head(reinterpret_cast<const char*>(&length), sizeof length);
    head += json;
    files[file] = {head, head.size() + at};
    header = Json::object();
    at = 0;
  };
  const std::uint64_t keys = shape.kv_heads * shape.head_dim();
  header = Json::object();
  for (std::uint64_t layer = 0; layer < shape.layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    add(prefix + "input_layernorm.weight", {shape.hidden});
    add(prefix + "mlp.down_proj.weight", {shape.hidden, shape.width});
    add(prefix + "mlp.gate_proj.weight", {shape.width, shape.hidden});
    add(prefix + "mlp.up_proj.weight", {shape.width, shape.hidden});
    add(prefix + "post_attention_layernorm.weight", {shape.hidden});
    add(prefix + "self_attn.k_proj.weight", {keys, shape.hidden});
    add(prefix + "self_attn.o_proj.weight", {shape.hidden, shape.hidden});
    add(prefix + "self_attn.q_proj.weight", {shape.hidden, shape.hidden});
    add(prefix + "self_attn.v_proj.weight", {keys, shape.hidden});
    end_file("model-layer-" + std::to_string(layer) + ".safetensors");
  }
  add("model.embed_tokens.weight", {shape.vocab, shape.hidden});
  add("model.norm.weight", {shape.hidden});
  add("lm_head.weight", {shape.vocab, shape.hidden});
  end_file("model-rest.safetensors");
  const auto add_text = [&](const char* name, const Json& json) {
    const std::string text = json.dump();
    files[name] = {text, text.size()};
  };
  add_text("model.safetensors.index.json", {{"weight_map", weight_map}});
  add_text("config.json", {{"model_type", "llama"},
                           {"hidden_size", shape.hidden},
                           {"intermediate_size", shape.width},
                           {"num_hidden_layers", shape.layers},
                           {"num_attention_heads", shape.heads},
                           {"num_key_value_heads", shape.kv_heads},
                           {"vocab_size", shape.vocab},
                           {"max_position_embeddings", 131072},
                           {"rms_norm_eps", 1e-5},
                           {"torch_dtype", shape.element_bytes() == 4 ? "float32" : "bfloat16"}});
  return files;
}

/// Serves heads; behind them there is nothing but a size.
class HeadTransport final : public weightmap::remote::Transport {
 public:
  explicit HeadTransport(const std::map<std::string, HeaderOnly>& files) : files_(files) {}
  void start(TransferRequest request, std::function<void(TransferResult)> done) override {
    const auto found = files_.find(request.uri.text.substr(request.uri.text.rfind('/') + 1));
    TransferResult result;
    if (found == files_.end()) {
      result.error = Error(ErrorCode::not_found, "not there");
      done(std::move(result));
      return;
    }
    const HeaderOnly& file = found->second;
    result.info = {file.size, "\"1\"", true};
    const std::uint64_t range_end = std::min(request.range.end, file.size);
    for (const FetchPiece& piece : request.pieces) {
      const std::uint64_t end = std::min(piece.range.end, range_end);
      std::memset(piece.destination, 0, end - piece.range.begin);
      if (piece.range.begin < file.head.size()) {
        std::memcpy(piece.destination, file.head.data() + piece.range.begin,
                    std::min<std::uint64_t>(end, file.head.size()) - piece.range.begin);
      }
      result.piece_bytes += end - piece.range.begin;
    }
    result.bytes_in_order = result.body_bytes = range_end - request.range.begin;
    // Opening a file reads a little ahead of its header; anything else asks for weights.
    LIB_CHECK(request.range.begin == 0 || range_end <= file.head.size());
    done(std::move(result));
  }

 private:
  const std::map<std::string, HeaderOnly>& files_;
};

class GpuPlan : public ::testing::TestWithParam<Shape> {};

TEST_P(GpuPlan, FitsIn16GiBOfDeviceMemory) {
  const Shape& shape = GetParam();
  const auto files = files_of(shape);
  librarian::testing::MemoryFileSystem disk;
  ASSERT_TRUE(replace_file(disk, "/tokens.safetensors",
                           testing::token_file({shape.longest_sample, 5000, 300, 8192}, 1000, 1)));
  JobEnvironment environment = JobEnvironment::real();
  environment.files = &disk;
  environment.make_transport = [&](const JobOptions& /*options*/) {
    return std::make_unique<HeadTransport>(files);
  };
  environment.make_device = [](const JobOptions& /*options*/) {
    return make_cuda_device(gpu_exec::make_emulated_cuda({9, 0, kLibraryRows, 1}),
                            kDeviceBytes - kContextBytes);
  };
  JobOptions options;
  options.model = testing::kModelUri;
  options.tokens = "/tokens.safetensors";
  options.out = "/out";
  options.captures = {"resid_post@all,attn_out@all"};
  options.host_memory_bytes = kHostBytes;
  options.threads = 16;
  const auto job = PreparedJob::create(options, environment, {});
  ASSERT_TRUE(job) << job.error().message();
  const MemoryPlan& plan = (*job)->memory();
  EXPECT_LE(plan.executor_memory.device_bytes(), kDeviceBytes - kContextBytes);
  EXPECT_LE(plan.total_bytes, kHostBytes);
  EXPECT_EQ(plan.packed_weight_bytes, 0U) << "the device has them";
  EXPECT_GE(plan.block_tokens, 256U) << "smaller blocks leave a GPU idle";
  ASSERT_TRUE((*job)->device_plan());
  const std::vector<gpu_exec::StageSummary>& stages = (*job)->device_plan()->stages;
  std::cout << shape.name << ": host " << format_bytes(plan.total_bytes) << " (weights "
            << format_bytes(plan.ring_bytes) << ", state " << format_bytes(plan.state_bytes)
            << (plan.state_in_memory ? " in memory" : " on disk") << "), device "
            << format_bytes(plan.executor_memory.device_bytes()) << ", blocks of "
            << plan.block_tokens << ", " << plan.executor_memory.rows_together << " rows together, "
            << stages.size() << " stages:\n";
  std::uint64_t bytes = 0;
  for (const gpu_exec::StageSummary& stage : stages) {
    std::cout << "  " << stage.text << ": " << format_bytes(stage.bytes) << "\n";
    bytes += stage.bytes;
  }
  // Every weight is in some stage: what the file of a layer has, and little more for alignment.
  const std::uint64_t layer = (*job)->checkpoint().layer(0).bytes;
  EXPECT_GE(bytes, layer);
  EXPECT_LE(bytes, layer + layer / 100);
}

INSTANTIATE_TEST_SUITE_P(
    Models, GpuPlan,
    ::testing::Values(Shape{"llama_70b", 80, 8192, 64, 8, 28672, 128256, "BF16", 131072},
                      Shape{"llama_405b", 126, 16384, 128, 8, 53248, 128256, "BF16", 131072},
                      // Twice 4 GiB of keys and values for the longest sample that it knows.
                      Shape{"teacher_f32", 96, 8192, 128, 128, 32768, 128000, "F32", 131072}),
    [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace librarian::ingest
