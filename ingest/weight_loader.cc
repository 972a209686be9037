#include "ingest/weight_loader.h"

#include <chrono>
#include <string_view>
#include <utility>

#include "ingest/stopwatch.h"

namespace librarian::ingest {
namespace {

constexpr std::chrono::microseconds kPollInterval(50);

}  // namespace

WeightLoader::WeightLoader(weightmap::VirtualWeightMap& weights, gpu_exec::LayerExecutor& executor,
                           Clock& clock, const weightmap::Checkpoint& checkpoint,
                           std::function<Result<void>(std::int32_t layer)> on_begun)
    : weights_(weights),
      executor_(executor),
      clock_(clock),
      checkpoint_(checkpoint),
      on_begun_(std::move(on_begun)) {}

WeightLoader::~WeightLoader() {
  // A device that failed reads nothing any more.
  static_cast<void>(end_lease({}));
}

void WeightLoader::begin_lease(std::int32_t layer, std::uint32_t readings) {
  layer_ = layer;
  lease_.emplace(weights_.acquire(layer, readings));
  tables_.clear();
  unneeded_experts_.clear();
}

Result<void> WeightLoader::begin(std::int32_t layer, std::uint32_t readings) {
  begin_lease(layer, readings);
  if (layer < checkpoint_.layer_count()) {
    executor_.begin_layer(static_cast<std::uint32_t>(layer));
  }
  return on_begun_(layer);
}

Result<void> WeightLoader::take(const weightmap::ArrivedPiece& piece) {
  LIB_CHECK(piece.offset == 0 && piece.bytes.size() == piece.tensor->bytes.size());
  LIB_TRY(const gpu_exec::Ticket done,
          piece.tensor->suffix.empty()
              ? executor_.load(piece.tensor->key, piece.tensor->dtype, piece.bytes)
              : take_quantised(piece));
  pieces_.push_back(done);
  return executor_.keeps_tensors() ? Result<void>() : give_back_reached();
}

/// Codes come last: what they need has been kept until then.
Result<gpu_exec::Ticket> WeightLoader::take_quantised(const weightmap::ArrivedPiece& piece) {
  const weightmap::WeightTensor& tensor = *piece.tensor;
  const weightmap::LayerPlan& plan = checkpoint_.layer(*layer_);
  auto& tables = tables_[tensor.key];
  if (!plan.is_codes(tensor)) {
    tables[tensor.suffix].assign(piece.bytes.begin(), piece.bytes.end());
    return gpu_exec::Ticket{};
  }
  std::map<std::string, std::span<const std::byte>> bytes{{tensor.suffix, piece.bytes}};
  for (const auto& [suffix, table] : tables) {
    bytes[suffix] = table;
  }
  const std::string module = checkpoint_.files()[tensor.file].name + ": " +
                             weightmap::quantised_module_name(tensor.name, tensor.suffix);
  LIB_TRY(const gpu_exec::QuantisedMatrix matrix,
          weightmap::bind_quantised(plan.quantised.at(tensor.key), bytes, module));
  return executor_.load(tensor.key, matrix);
}

Result<void> WeightLoader::give_back_reached() {
  while (!pieces_.empty()) {
    LIB_TRY(const bool reached, executor_.reached(pieces_.front()));
    if (!reached) {
      break;
    }
    lease_->give_back_oldest();
    pieces_.pop_front();
  }
  return {};
}

Result<void> WeightLoader::end_lease(const std::stop_token& stop) {
  while (!pieces_.empty()) {
    LIB_TRY_VOID(give_back_reached());
    if (!pieces_.empty() && !clock_.sleep_for(kPollInterval, stop)) {
      return Error(ErrorCode::cancelled, "stopped while loading weights");
    }
  }
  lease_.reset();
  layer_.reset();
  return {};
}

Result<std::map<std::string, std::string>> WeightLoader::load(std::int32_t layer, LayerTimes& times,
                                                              const std::stop_token& stop) {
  if (layer_ != layer) {
    const Stopwatch watch(clock_, times.load_busy);
    LIB_TRY_VOID(end_lease(stop));
    LIB_TRY_VOID(begin(layer));
  }
  while (true) {
    std::optional<weightmap::ArrivedPiece> piece;
    {
      const Stopwatch watch(clock_, times.fetch_wait);
      LIB_TRY(piece, next_piece(stop));
    }
    if (!piece) {
      break;
    }
    const Stopwatch watch(clock_, times.load_busy);
    LIB_TRY_VOID(take(*piece));
  }
  return digests();
}

/// Nothing: the layer is complete.
Result<std::optional<weightmap::ArrivedPiece>> WeightLoader::next_piece(
    const std::stop_token& stop) {
  // Pieces that are still being uploaded hold the memory that the next ones need.
  LIB_TRY(std::optional<weightmap::ArrivedPiece> piece, lease_->next_if_there());
  while (!piece && !lease_->complete() && !pieces_.empty() && !executor_.keeps_tensors()) {
    LIB_TRY_VOID(give_back_reached());
    clock_.sleep_for(kPollInterval, stop);
    LIB_TRY(piece, lease_->next_if_there());
  }
  return piece ? piece : lease_->next(stop);
}

std::map<std::string, std::string> WeightLoader::digests() {
  std::map<std::string, std::string> digests;
  for (weightmap::TensorDigest& digest : lease_->take_digests()) {
    digests[digest.name] = digest.xxh3.hex();
  }
  return digests;
}

Result<void> WeightLoader::begin_stages(std::int32_t layer, std::uint32_t reading,
                                        std::uint32_t readings, LayerTimes& times,
                                        const std::stop_token& stop) {
  const Stopwatch watch(clock_, times.load_busy);
  LIB_TRY_VOID(end_lease(stop));
  if (reading == 0) {
    return begin(layer, readings);
  }
  begin_lease(layer, readings - reading);
  return {};
}

bool WeightLoader::is_unneeded(const weightmap::WeightTensor& tensor) const {
  return gpu_exec::is_expert_role(tensor.key.role) &&
         tensor.key.expert < unneeded_experts_.size() && unneeded_experts_[tensor.key.expert];
}

void WeightLoader::skip_experts(const std::vector<bool>& unneeded) {
  unneeded_experts_ = unneeded;
  lease_->skip([this](const weightmap::WeightTensor& tensor) { return is_unneeded(tensor); });
}

Result<std::uint64_t> WeightLoader::load_stage(std::uint32_t order_end, LayerTimes& times,
                                               const std::stop_token& stop) {
  std::uint64_t bytes = 0;
  const weightmap::LayerPlan& plan = checkpoint_.layer(*layer_);
  const weightmap::WeightTensor* next = nullptr;
  while ((next = lease_->upcoming()) != nullptr && plan.turn_of(*next) < order_end) {
    std::optional<weightmap::ArrivedPiece> piece;
    {
      const Stopwatch watch(clock_, times.fetch_wait);
      LIB_TRY(piece, next_piece(stop));
    }
    const Stopwatch watch(clock_, times.load_busy);
    LIB_TRY_VOID(take(*piece));
    bytes += piece->bytes.size();
  }
  return bytes;
}

Result<std::map<std::string, std::string>> WeightLoader::end_stages(const std::stop_token& stop) {
  LIB_CHECK(lease_->complete());
  std::map<std::string, std::string> all = digests();
  // Some of those came before it was known: what a store says must not depend on when.
  for (const weightmap::WeightTensor& tensor : checkpoint_.layer(*layer_).tensors) {
    if (is_unneeded(tensor)) {
      all.erase(tensor.name);
    }
  }
  LIB_TRY_VOID(end_lease(stop));
  return all;
}

Result<void> WeightLoader::load_ahead(std::int32_t layer) {
  if (!executor_.loads_ahead()) {
    return {};
  }
  LIB_TRY_VOID(give_back_reached());
  if (layer_ != layer) {
    if (!pieces_.empty()) {
      return {};  // The layer that runs is still on its way to the device.
    }
    lease_.reset();
    LIB_TRY_VOID(begin(layer));
  }
  // One piece at a time: its digest keeps this thread from giving the device its next block.
  LIB_TRY(const std::optional<weightmap::ArrivedPiece> piece, lease_->next_if_there());
  return piece ? take(*piece) : Result<void>();
}

void WeightLoader::layer_done() {
  if (executor_.keeps_tensors()) {
    pieces_.clear();
    lease_.reset();
    layer_.reset();
  }
}

}  // namespace librarian::ingest
