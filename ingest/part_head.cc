// A part's last step where logits are wanted: its rows meet the head tile by tile.
#include <algorithm>
#include <array>
#include <numeric>
#include <span>
#include <utility>

#include "gpu_exec/topk.h"
#include "ingest/part_work.h"
#include "ingest/stopwatch.h"

namespace librarian::ingest {

using gpu_exec::WeightRole;

/// The head comes in groups of as many tiles as the executor has room for. All rows meet a group
/// before the next one comes: with one group a batch of rows is finished at once, with several each
/// row's memory waits for the next group.
class PartRun::HeadStep {
 public:
  HeadStep(PartRun& run, const PartTools& tools, LayerWork& work, std::stop_token stop)
      : run_(run),
        tools_(tools),
        work_(work),
        stop_(std::move(stop)),
        model_(run.context_.checkpoint.spec()),
        k_(run.context_.captures.logits->k),
        tiles_((model_.vocab_size + gpu_exec::kVocabularyTile - 1) / gpu_exec::kVocabularyTile),
        rows_(run.topk_rows()),
        outputs_(sinks_of(work)),
        batch_rows_(std::min(run.context_.block_tokens, run.range_.tokens)),
        row_bytes_(model_.hidden_size * gpu_exec::dtype_bytes(run.context_.dtype)) {
    const bool at_once = tools.executor.head_tiles() >= tiles_;
    memory_.resize((at_once ? std::min<std::uint64_t>(batch_rows_, rows_.size()) : rows_.size()) *
                   gpu_exec::topk_row_bytes(k_));
    batch_.resize(batch_rows_ * row_bytes_);
    normed_.resize(model_.final_norm ? batch_.size() : 0);
    find_gold_tokens();
    tools.executor.begin_head(0);
  }

  /// A piece of the step's weights.
  Result<void> take(const weightmap::ArrivedPiece& piece) {
    gpu_exec::LayerExecutor& executor = tools_.executor;
    const WeightRole role = piece.tensor->key.role;
    const bool of_head = role == WeightRole::head || role == WeightRole::head_bias;
    LIB_TRY(const gpu_exec::Ticket loaded,
            of_head ? executor.load_head(role, piece.tensor->dtype, piece.bytes)
                    : executor.load(role, piece.tensor->dtype, piece.bytes));
    LIB_TRY_VOID(executor.wait_for(loaded));
    if (role != WeightRole::head) {
      return {};
    }
    ++next_tile_;
    if (next_tile_ - first_tile_ < executor.head_tiles() && next_tile_ < tiles_) {
      return {};
    }
    LIB_TRY_VOID(show_rows());
    first_tile_ = next_tile_;
    executor.begin_head(first_tile_);
    return {};
  }

 private:
  static constexpr std::array kArrays{"ids", "log_prob", "logsumexp", "gold_log_prob"};

  /// Those of kArrays, which planned_arrays() has opened with the step's others.
  static std::array<CaptureSink*, kArrays.size()> sinks_of(LayerWork& work) {
    std::array<CaptureSink*, kArrays.size()> sinks{};
    for (std::size_t i = 0; i < kArrays.size(); ++i) {
      const std::string name = std::string(kLogitsTopk) + "." + kArrays[i];
      const auto found = std::find_if(work.outputs.begin(), work.outputs.end(),
                                      [&](const CaptureSink& sink) { return sink.name() == name; });
      LIB_CHECK(found != work.outputs.end());
      sinks[i] = &*found;
    }
    return sinks;
  }

  /// A token predicts the one behind it in its sample.
  void find_gold_tokens() {
    const TokenData& tokens = run_.context_.tokens;
    const auto first = static_cast<std::size_t>(tokens.offsets[run_.range_.first_sample]);
    const std::span<const std::int32_t> ids =
        std::span(tokens.input_ids).subspan(first, run_.range_.tokens);
    auto end = run_.offsets_.begin();
    for (const std::int64_t row : rows_) {
      end = std::upper_bound(end, run_.offsets_.end(), row);
      gold_ids_.push_back(row + 1 < *end ? ids[static_cast<std::size_t>(row) + 1] : -1);
    }
  }

  /// Shows all rows the tiles that are there.
  Result<void> show_rows() {
    std::uint64_t done = 0;
    std::uint64_t taken = 0;
    for (const BlockRange& block : run_.blocks_) {
      const std::uint64_t block_end = block.row_begin + block.rows;
      if (taken == rows_.size() || static_cast<std::uint64_t>(rows_[taken]) >= block_end) {
        continue;
      }
      LIB_TRY(const std::span<const std::byte> rows,
              run_.state_->load(block.row_begin, block.rows));
      for (; taken < rows_.size() && static_cast<std::uint64_t>(rows_[taken]) < block_end;
           ++taken) {
        if (taken - done == batch_rows_) {
          LIB_TRY_VOID(show_batch(done, taken));
          done = taken;
        }
        const std::uint64_t from = static_cast<std::uint64_t>(rows_[taken]) - block.row_begin;
        std::copy_n(rows.begin() + static_cast<std::ptrdiff_t>(from * row_bytes_), row_bytes_,
                    batch_.begin() + static_cast<std::ptrdiff_t>((taken - done) * row_bytes_));
      }
    }
    return taken == done ? Result<void>() : show_batch(done, taken);
  }

  /// Rows [begin, end) of those that are kept.
  Result<void> show_batch(std::uint64_t begin, std::uint64_t end) {
    const std::uint64_t memory_row = gpu_exec::topk_row_bytes(k_);
    const bool at_once = tools_.executor.head_tiles() >= tiles_;
    const std::span<std::byte> memory =
        std::span(memory_).subspan(at_once ? 0 : begin * memory_row, (end - begin) * memory_row);
    if (first_tile_ == 0) {
      gpu_exec::clear_topk(memory, k_);
    }
    std::span<std::byte> rows = std::span(batch_).first((end - begin) * row_bytes_);
    if (model_.final_norm) {
      const std::span<std::byte> normed = std::span(normed_).first(rows.size());
      LIB_TRY_VOID(tools_.executor.run_final_norm(rows, normed));
      rows = normed;
    }
    LIB_TRY_VOID(tools_.executor.run_topk(rows, std::span(gold_ids_).subspan(begin, end - begin),
                                          memory, stop_));
    if (next_tile_ < tiles_) {
      return {};
    }
    LIB_TRY_VOID(write(begin, end, memory));
    run_.context_.observer.rows_done(run_.part_, work_.layer,
                                     end * run_.range_.tokens / rows_.size(), run_.range_.tokens);
    return {};
  }

  Result<void> write(std::uint64_t begin, std::uint64_t end, std::span<std::byte> memory) {
    const std::uint64_t count = end - begin;
    const std::uint64_t memory_row = gpu_exec::topk_row_bytes(k_);
    std::vector<std::int32_t> ids(count * k_);
    std::vector<std::uint16_t> log_prob(count * k_);
    std::vector<float> logsumexp(count);
    std::vector<float> gold_log_prob(count);
    for (std::uint64_t i = 0; i < count; ++i) {
      const bool finite = gpu_exec::finish_topk(
          memory.subspan(i * memory_row, memory_row), k_, gold_ids_[begin + i] >= 0,
          {std::span(ids).subspan(i * k_, k_), std::span(log_prob).subspan(i * k_, k_),
           &logsumexp[i], &gold_log_prob[i]});
      if (!finite && !run_.context_.allow_nonfinite) {
        return run_.nonfinite_at("the head", rows_[begin + i]);
      }
    }
    const Stopwatch watch(run_.context_.clock, work_.times.capture_wait);
    const std::array<std::span<const std::byte>, kArrays.size()> all{
        std::as_bytes(std::span(ids)), std::as_bytes(std::span(log_prob)),
        std::as_bytes(std::span(logsumexp)), std::as_bytes(std::span(gold_log_prob))};
    for (std::size_t i = 0; i < all.size(); ++i) {
      LIB_TRY_VOID(outputs_[i]->append_stored(all[i], stop_));
    }
    return {};
  }

  PartRun& run_;
  const PartTools& tools_;
  LayerWork& work_;
  const std::stop_token stop_;
  const gpu_exec::ModelSpec& model_;
  const std::uint32_t k_;
  const std::uint64_t tiles_;
  const std::vector<std::int64_t> rows_;  ///< That are kept, of the part.
  const std::array<CaptureSink*, kArrays.size()> outputs_;
  const std::uint64_t batch_rows_;
  const std::uint64_t row_bytes_;
  std::vector<std::int32_t> gold_ids_;  ///< As `rows_`.
  std::vector<std::byte> memory_;       ///< Of a batch, or of all rows; see TopkRow.
  std::vector<std::byte> batch_, normed_;
  std::uint64_t first_tile_ = 0;  ///< The first one that is on the device.
  std::uint64_t next_tile_ = 0;
};

std::vector<std::int64_t> PartRun::topk_rows() const {
  const auto kept = kept_rows_.find(context_.captures.logits->positions.rows_name());
  if (kept != kept_rows_.end()) {
    return kept->second;
  }
  std::vector<std::int64_t> all(range_.tokens);
  std::iota(all.begin(), all.end(), 0);
  return all;
}

Result<void> PartRun::run_head(const PartTools& tools, WeightLoader& loader, LayerWork& work,
                               const std::stop_token& stop) {
  LIB_TRY_VOID(loader.end_lease(stop));
  HeadStep head(*this, tools, work, stop);
  const Duration waited_before = work.times.capture_wait;
  LIB_TRY_VOID(take_weights(
      tools, work, work.times.compute_busy,
      [&](const weightmap::ArrivedPiece& piece) { return head.take(piece); }, stop));
  work.times.compute_busy -= work.times.capture_wait - waited_before;
  return write_final_norm(tools, work, stop);
}

}  // namespace librarian::ingest
