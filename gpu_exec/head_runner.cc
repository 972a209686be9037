#include "gpu_exec/head_runner.h"

#include <algorithm>
#include <string>

#include "gpu_exec/topk.h"

namespace librarian::gpu_exec {
namespace {

Error invalid(const std::string& message) { return {ErrorCode::invalid_argument, message}; }

}  // namespace

HeadRunner::HeadRunner(const ModelSpec& model, const ExecutorOptions& options, Device& device,
                       const ExecutionPlan& plan, std::byte* arena, std::byte* host)
    : model_(model), options_(options), device_(device), plan_(plan), arena_(arena), host_(host) {}

std::uint64_t HeadRunner::tile_count() const {
  return (model_.vocab_size + kVocabularyTile - 1) / kVocabularyTile;
}

std::uint64_t HeadRunner::tile_rows(std::uint64_t tile) const {
  return std::min(kVocabularyTile, model_.vocab_size - tile * kVocabularyTile);
}

const float* HeadRunner::bias_of(std::uint64_t tile) const {
  if (!model_.head.bias) {
    return nullptr;
  }
  return reinterpret_cast<const float*>(arena_ + plan_.head_bias +
                                        tile * device_.vector_bytes(kVocabularyTile));
}

void HeadRunner::begin(std::uint64_t first_tile) {
  first_tile_ = first_tile;
  loaded_tiles_ = 0;
  // What is computed still reads what lies there.
  device_.wait(Queue::weights, device_.mark(Queue::compute));
}

Result<Ticket> HeadRunner::load(WeightRole role, DType type, std::span<const std::byte> bytes) {
  if (role == WeightRole::head_bias) {
    LIB_TRY_VOID(load_bias(type, bytes));
    return loaded_;
  }
  const std::uint64_t tile = first_tile_ + loaded_tiles_;
  if (role != WeightRole::head || type != options_.head_dtype ||
      loaded_tiles_ == plan_.memory.head_tiles || tile >= tile_count()) {
    return invalid("head: no room for tile " + std::to_string(tile) + " of " +
                   std::to_string(tile_count()) + ", or it is not " +
                   dtype_name(options_.head_dtype));
  }
  const std::uint64_t rows = tile_rows(tile);
  if (bytes.size() != rows * model_.hidden_size * dtype_bytes(type)) {
    return invalid("head: " + std::to_string(bytes.size()) + " bytes for " + std::to_string(rows) +
                   " rows of tile " + std::to_string(tile));
  }
  device_.pack_matrix({bytes.data(), type, {}, false, rows}, rows, model_.hidden_size,
                      arena_ + plan_.weights + loaded_tiles_ * plan_.head_tile_bytes);
  ++loaded_tiles_;
  type_ = type;
  loaded_ = device_.mark(Queue::weights);
  return loaded_;
}

Result<void> HeadRunner::load_bias(DType type, std::span<const std::byte> bytes) {
  if (!model_.head.bias || bytes.size() != model_.vocab_size * dtype_bytes(type)) {
    return invalid("head_bias: " + std::to_string(bytes.size()) + " bytes for " +
                   std::to_string(model_.head.bias ? model_.vocab_size : 0) + " elements");
  }
  for (std::uint64_t tile = 0; tile < tile_count(); ++tile) {
    device_.load_vector({bytes.data() + tile * kVocabularyTile * dtype_bytes(type), type, {}, 0},
                        tile_rows(tile), const_cast<float*>(bias_of(tile)));
  }
  bias_there_ = true;
  loaded_ = device_.mark(Queue::weights);
  return {};
}

Result<void> HeadRunner::check(std::span<const std::byte> normed,
                               std::span<const std::int32_t> gold_ids,
                               std::span<const std::byte> memory) const {
  const std::uint64_t rows = gold_ids.size();
  if (options_.topk == 0 || rows > options_.block_rows_max ||
      normed.size() != rows * model_.hidden_size * dtype_bytes(options_.dtype) ||
      memory.size() != rows * topk_row_bytes(options_.topk)) {
    return invalid("top k: " + std::to_string(rows) + " rows with " +
                   std::to_string(normed.size()) + " bytes in and " +
                   std::to_string(memory.size()) + " of memory, at most " +
                   std::to_string(options_.block_rows_max) + " rows");
  }
  if (model_.head.bias && !bias_there_) {
    return invalid("head_bias is not loaded");
  }
  return {};
}

Result<Ticket> HeadRunner::run(std::span<const std::byte> normed,
                               std::span<const std::int32_t> gold_ids,
                               std::span<const std::byte> memory, const std::stop_token& stop) {
  LIB_TRY_VOID(check(normed, gold_ids, memory));
  const std::uint64_t row_bytes = model_.hidden_size * dtype_bytes(options_.dtype);
  const bool copied = plan_.state_slots != 0;
  const std::byte* x = normed.data();
  const std::int32_t* gold = gold_ids.data();
  auto* state = const_cast<std::byte*>(memory.data());  // Of take(), where nothing is copied.
  if (copied) {
    std::byte* const gold_there = arena_ + plan_.gold_ids;
    std::copy(normed.begin(), normed.end(), host_);
    std::copy(memory.begin(), memory.end(), host_ + plan_.host_topk);
    const auto gold_bytes = std::as_bytes(gold_ids);
    std::copy(gold_bytes.begin(), gold_bytes.end(), host_ + plan_.host_gold);
    device_.copy_in(host_, arena_ + plan_.state, normed.size());
    device_.copy_in(host_ + plan_.host_topk, arena_ + plan_.topk, memory.size());
    device_.copy_in(host_ + plan_.host_gold, gold_there, gold_bytes.size());
    device_.wait(Queue::compute, device_.mark(Queue::upload));
    x = arena_ + plan_.state;
    gold = reinterpret_cast<const std::int32_t*>(gold_there);
    state = arena_ + plan_.topk;
  }
  device_.wait(Queue::compute, loaded_);
  auto* const logits = reinterpret_cast<float*>(arena_ + plan_.logits);
  for (std::uint64_t row = 0; row < gold_ids.size(); row += plan_.logit_rows) {
    for (std::uint64_t i = 0; i < loaded_tiles_; ++i) {
      const std::uint64_t tile = first_tile_ + i;
      LinearOp product;
      product.x = x + row * row_bytes;
      product.y = reinterpret_cast<std::byte*>(logits);
      product.dtype = options_.dtype;
      product.rows = std::min(plan_.logit_rows, gold_ids.size() - row);
      product.inputs = model_.hidden_size;
      product.outputs = tile_rows(tile);
      product.matrix = {arena_ + plan_.weights + i * plan_.head_tile_bytes, type_, bias_of(tile),
                        false};
      product.y_f32 = true;
      device_.linear(product, arena_ + plan_.scratch, stop);
      if (stop.stop_requested()) {
        return Error(ErrorCode::cancelled, "stopped between two tiles of the head");
      }
      TopkOp op;
      op.logits = logits;
      op.rows = product.rows;
      op.count = product.outputs;
      op.first_id = tile * kVocabularyTile;
      op.multiplier = model_.head.multiplier;
      op.softcap = model_.head.softcap;
      op.k = options_.topk;
      op.gold_ids = gold + row;
      op.memory = state + row * topk_row_bytes(options_.topk);
      device_.topk(op);
    }
  }
  if (!copied) {
    return device_.mark(Queue::compute);
  }
  device_.wait(Queue::download, device_.mark(Queue::compute));
  device_.copy_out(arena_ + plan_.topk, host_ + plan_.host_topk, memory.size());
  return device_.mark(Queue::download);
}

Result<void> HeadRunner::take(std::span<std::byte> memory) {
  if (plan_.state_slots != 0) {
    const std::byte* const home = host_ + plan_.host_topk;
    std::copy(home, home + memory.size(), memory.begin());
  }
  return {};
}

}  // namespace librarian::gpu_exec
