#include "tests/ingest/tiny_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "base/digest.h"
#include "base/json.h"
#include "weightmap/remote/scatter.h"

namespace librarian::ingest::testing {
namespace {

using weightmap::remote::ByteRange;
using weightmap::remote::FetchPiece;
using weightmap::remote::Scatter;
using weightmap::remote::TransferRequest;
using weightmap::remote::TransferResult;

struct Tensor {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::string bytes;
};

std::string safetensors(const std::vector<Tensor>& tensors) {
  Json header = Json::object();
  std::string data;
  for (const Tensor& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  const std::string json = header.dump();
  const std::uint64_t length = json.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + json + data;
}

class Generator {
 public:
  explicit Generator(unsigned seed) : engine_(seed) {}

  Tensor weight(const std::string& name, std::vector<std::int64_t> shape, double mean) {
    std::int64_t count = 1;
    for (const std::int64_t extent : shape) {
      count *= extent;
    }
    std::normal_distribution<float> normal(static_cast<float>(mean),
                                           1.0F / std::sqrt(static_cast<float>(shape.back())));
    std::string bytes;
    for (std::int64_t i = 0; i < count; ++i) {
      const float value = normal(engine_);
      std::uint32_t bits = 0;
      std::memcpy(&bits, &value, 4);
      const auto bf16 = static_cast<std::uint16_t>(bits >> 16U);
      bytes.append(reinterpret_cast<const char*>(&bf16), 2);
    }
    return {name, "BF16", std::move(shape), std::move(bytes)};
  }

 private:
  std::mt19937 engine_;
};

template <typename T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

}  // namespace

std::map<std::string, std::string> tiny_model(const TinyModelOptions& options) {
  constexpr int kHeads = 2;
  const Json config = {{"model_type", "llama"},
                       {"hidden_size", options.hidden},
                       {"intermediate_size", options.width},
                       {"num_hidden_layers", options.layers},
                       {"num_attention_heads", kHeads},
                       {"num_key_value_heads", 1},
                       {"vocab_size", options.vocab},
                       {"max_position_embeddings", 128},
                       {"rms_norm_eps", 1e-5},
                       {"torch_dtype", "bfloat16"}};
  Generator generator(options.seed);
  const std::int64_t hidden = options.hidden;
  const std::int64_t head = hidden / kHeads;
  std::vector<std::vector<Tensor>> files(2);
  files[0].push_back(generator.weight("model.embed_tokens.weight", {options.vocab, hidden}, 0.0));
  for (int layer = 0; layer < options.layers; ++layer) {
    std::vector<Tensor>& file = files[layer * 2 < options.layers ? 0 : 1];
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    const auto add = [&](const std::string& name, std::vector<std::int64_t> shape, double mean) {
      file.push_back(generator.weight(prefix + name, std::move(shape), mean));
    };
    add("input_layernorm.weight", {hidden}, 1.0);
    add("mlp.down_proj.weight", {hidden, options.width}, 0.0);
    add("mlp.gate_proj.weight", {options.width, hidden}, 0.0);
    add("mlp.up_proj.weight", {options.width, hidden}, 0.0);
    add("post_attention_layernorm.weight", {hidden}, 1.0);
    add("self_attn.k_proj.weight", {head, hidden}, 0.0);
    add("self_attn.o_proj.weight", {hidden, hidden}, 0.0);
    add("self_attn.q_proj.weight", {hidden, hidden}, 0.0);
    add("self_attn.v_proj.weight", {head, hidden}, 0.0);
  }
  files[1].push_back(generator.weight("model.norm.weight", {hidden}, 1.0));
  files[1].push_back(generator.weight("lm_head.weight", {options.vocab, hidden}, 0.0));

  Json weight_map = Json::object();
  std::map<std::string, std::string> contents;
  for (std::size_t i = 0; i < files.size(); ++i) {
    const std::string name = "model-0000" + std::to_string(i + 1) + "-of-00002.safetensors";
    for (const Tensor& tensor : files[i]) {
      weight_map[tensor.name] = name;
    }
    contents[name] = safetensors(files[i]);
  }
  contents["config.json"] = config.dump();
  contents["model.safetensors.index.json"] = Json({{"weight_map", weight_map}}).dump();
  return contents;
}

std::string token_file(const std::vector<std::int64_t>& lengths, int vocab, unsigned seed,
                       const std::vector<std::uint8_t>& loss_mask) {
  std::mt19937 engine(seed);
  std::vector<std::int64_t> offsets{0};
  for (const std::int64_t length : lengths) {
    offsets.push_back(offsets.back() + length);
  }
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < offsets.back(); ++i) {
    ids.push_back(static_cast<std::int32_t>(engine() % static_cast<unsigned>(vocab)));
  }
  std::vector<Tensor> tensors{
      {"input_ids", "I32", {offsets.back()}, raw(ids)},
      {"offsets", "I64", {static_cast<std::int64_t>(offsets.size())}, raw(offsets)}};
  if (!loss_mask.empty()) {
    tensors.push_back({"loss_mask", "U8", {offsets.back()}, raw(loss_mask)});
  }
  return safetensors(tensors);
}

TransferResult MapTransport::answer(const TransferRequest& request) {
  TransferResult result;
  const std::string name = request.uri.text.substr(request.uri.text.rfind('/') + 1);
  const auto found = files_.find(name);
  if (found == files_.end()) {
    result.error = Error(ErrorCode::not_found, "not there");
    return result;
  }
  const std::string& data = found->second;
  result.info = {data.size(), "\"" + tag_ + "\"", strong_,
                 offers_sha256_ ? sha256_hex(data) : std::string()};
  if (request.expected && !(*request.expected == *result.info)) {
    result.error = Error(ErrorCode::source_changed, "changed");
    return result;
  }
  const ByteRange range{request.range.begin,
                        std::min<std::uint64_t>(request.range.end, data.size())};
  result.bytes_in_order = range.size();
  result.body_bytes = range.size();
  const std::lock_guard<std::mutex> guard(mutex_);
  if (range.size() > bytes_left_) {
    TransferResult failed;
    failed.error = Error(ErrorCode::bad_input, "the origin says no");
    return failed;
  }
  bytes_left_ -= range.size();
  served_.push_back({name, range});
  std::string body = data.substr(range.begin, range.size());
  const bool wanted =
      std::any_of(request.pieces.begin(), request.pieces.end(), [&](const FetchPiece& piece) {
        return piece.range.begin <= flipped_offset_ &&
               flipped_offset_ < std::min(piece.range.end, range.end);
      });
  if (flips_left_ > 0 && name == flipped_name_ && wanted) {
    body[flipped_offset_ - range.begin] ^= 1;
    --flips_left_;
  }
  Scatter scatter(range.begin, request.pieces);
  scatter.append(std::as_bytes(std::span(body)));
  result.piece_bytes = scatter.piece_bytes();
  result.crcs = scatter.crcs();
  return result;
}

void MapTransport::flip(const std::string& name, std::uint64_t offset, int times) {
  const std::lock_guard<std::mutex> guard(mutex_);
  flipped_name_ = name;
  flipped_offset_ = offset;
  flips_left_ = times;
}

void MapTransport::fail_after(std::uint64_t bytes) {
  const std::lock_guard<std::mutex> guard(mutex_);
  bytes_left_ = bytes;
}

void MapTransport::start(TransferRequest request, std::function<void(TransferResult)> done) {
  done(answer(request));
}

std::vector<ServedRange> MapTransport::served() const {
  const std::lock_guard<std::mutex> guard(mutex_);
  return served_;
}

}  // namespace librarian::ingest::testing
