// The second half of a part's life: its layers, one after the other.
#include "ingest/part_run.h"

#include <algorithm>
#include <utility>

#include "gpu_exec/embedding.h"
#include "ingest/nonfinite.h"
#include "ingest/part_work.h"
#include "ingest/stopwatch.h"

namespace librarian::ingest {
namespace {

using activation_store::ArrayWriter;
using gpu_exec::CapturePoint;

}  // namespace

/// What the executor asks of a layer that runs: its rows come from the state and go back there,
/// captures go to the writers, and the next layer's weights go ahead meanwhile.
class PartRun::BlockIo final : public gpu_exec::LayerIo {
 public:
  BlockIo(PartRun& run, WeightLoader& loader, LayerWork& work, std::stop_token stop)
      : run_(run), loader_(loader), work_(work), stop_(std::move(stop)) {}

  bool wants(CapturePoint point) const override {
    return run_.context_.captures.layers[static_cast<std::size_t>(work_.layer)].contains(point);
  }
  /// What run() calls block 0 from now on.
  void set_first_block(std::size_t first) { first_block_ = first; }
  Result<std::span<std::byte>> load(std::size_t block) override {
    return run_.state_->load(range(block).row_begin, range(block).rows);
  }
  Result<void> capture(CapturePoint point, std::size_t block,
                       std::span<const std::byte> rows) override {
    const Stopwatch watch(run_.context_.clock, work_.times.capture_wait);
    const std::string name = capture_array_name(work_.layer, point);
    const auto output = std::find_if(work_.outputs.begin(), work_.outputs.end(),
                                     [&](const auto& sink) { return sink.name() == name; });
    LIB_CHECK(output != work_.outputs.end());
    return output->append(rows, range(block).row_begin, stop_);
  }
  Result<void> store(std::size_t block, std::span<std::byte> rows) override {
    const BlockRange& where = range(block);
    LIB_TRY_VOID(run_.check_finite(rows, run_.context_.dtype, work_, where.row_begin));
    LIB_TRY_VOID(run_.state_->store(where.row_begin, rows));
    run_.context_.observer.rows_done(run_.part_, work_.layer, where.row_begin + where.rows,
                                     run_.range_.tokens);
    return {};
  }
  Result<void> load_stage(std::uint32_t order_end) override {
    LIB_TRY(const std::uint64_t bytes, loader_.load_stage(order_end, work_.times, stop_));
    work_.weight_bytes += bytes;
    return {};
  }
  void unneeded_experts(const std::vector<bool>& unneeded) override {
    loader_.skip_experts(unneeded);
  }
  Result<void> idle() override {
    // The head comes tile by tile, to where this layer's weights are.
    const bool head_is_next = run_.context_.captures.logits.has_value() &&
                              work_.layer + 1 == run_.context_.checkpoint.layer_count();
    return work_.layer < run_.last_layer_ && !head_is_next ? loader_.load_ahead(work_.layer + 1)
                                                           : Result<void>();
  }

 private:
  const BlockRange& range(std::size_t block) const { return run_.blocks_[first_block_ + block]; }

  PartRun& run_;
  WeightLoader& loader_;
  LayerWork& work_;
  std::stop_token stop_;
  std::size_t first_block_ = 0;
};

/// Commits layers in order on its own thread, so that the next layer computes while this one's
/// last rows reach the disk. At most one commit is under way.
class PartRun::Committer {
 public:
  Committer(PartRun& run, std::stop_token stop)
      : run_(run),
        stop_(std::move(stop)),
        monitor_(run.context_.clock),
        thread_(start_thread(run.context_.clock,
                             [this](const std::stop_token& ended) { loop(ended); })) {}

  ~Committer() {
    thread_.request_stop();
    thread_.join();
  }

  /// Waits until the commit before is done, reports its failure, and takes this one.
  Result<void> submit(LayerWork work) {
    LIB_TRY_VOID(drain());
    auto lock = monitor_.lock();
    work_.emplace(std::move(work));
    monitor_.notify_all(lock);
    return {};
  }

  /// Waits until nothing is under way.
  Result<void> drain() {
    auto lock = monitor_.lock();
    monitor_.wait(lock, {}, [&] { return !work_.has_value(); });
    return result_;
  }

 private:
  void loop(const std::stop_token& ended) {
    while (true) {
      {
        auto lock = monitor_.lock();
        if (!monitor_.wait(lock, ended, [&] { return work_.has_value(); })) {
          return;
        }
      }
      // Nobody else touches work_ while it is there.
      Result<void> result = run_.commit_now(*work_, stop_);
      auto lock = monitor_.lock();
      if (result_ && !result) {
        result_ = std::move(result);
      }
      work_.reset();
      monitor_.notify_all(lock);
    }
  }

  PartRun& run_;
  std::stop_token stop_;
  Monitor monitor_;
  std::optional<LayerWork> work_;
  Result<void> result_;
  std::jthread thread_;  // Last member: it ends before anything it uses.
};

PartRun::~PartRun() = default;

std::string PartRun::covering_array(std::int32_t layer) const {
  if (!context_.captures.keeps_state_of(layer)) {
    return "";
  }
  return layer < 0 ? "embed" : capture_array_name(layer, CapturePoint::resid_post);
}

bool PartRun::durable_state_due() const {
  return context_.clock.now() - state_saved_ >= context_.save_state_every;
}

Result<void> PartRun::run(const PartTools& tools,
                          const std::function<Result<void>()>& on_last_layer,
                          const std::stop_token& stop) {
  on_last_layer_ = on_last_layer;
  context_.observer.part_started(part_, range_.tokens, first_layer());
  LIB_TRY_VOID(check_moved_source(tools, stop));
  LIB_TRY_VOID(restore_state());
  state_saved_ = context_.clock.now();
  {
    Committer committer(*this, stop);
    WeightLoader loader(tools.weights, tools.executor, context_.clock, context_.checkpoint,
                        [&](std::int32_t layer) { return prefetch_after(tools, layer); });
    Duration waited{};  // For the commit before: it held up the layer after.
    for (std::int32_t layer = first_layer(); layer <= last_layer_; ++layer) {
      LayerWork work;
      work.layer = layer;
      work.weight_bytes = context_.checkpoint.layer(layer).bytes;
      work.begin = context_.clock.now();
      work.times.commit_wait = std::exchange(waited, Duration{});
      LIB_TRY_VOID(open_writers(tools, work));
      LIB_TRY_VOID(layer < 0 ? run_embedding(tools, work, stop)
                   : layer < context_.checkpoint.layer_count()
                       ? run_layer(tools, loader, work, stop)
                   : context_.captures.logits ? run_head(tools, loader, work, stop)
                                              : run_final_norm(tools, loader, work, stop));
      work.times.wall = context_.clock.now() - work.begin + work.times.commit_wait;
      if (work.place.kind != StatePlace::Kind::none) {
        state_saved_ = context_.clock.now();
      }
      const Stopwatch watch(context_.clock, waited);
      LIB_TRY_VOID(committer.submit(std::move(work)));
      // A state on disk may be the array that is being published: the next layer reads it.
      if (!context_.state_in_memory) {
        LIB_TRY_VOID(committer.drain());
      }
    }
    LIB_TRY_VOID(committer.drain());
  }
  LIB_TRY_VOID(publish(stop));
  context_.observer.part_done(part_);
  return {};
}

Result<void> PartRun::open_writers(const PartTools& tools, LayerWork& work) {
  std::vector<PlannedArray> arrays = planned_arrays(context_.captures, geometry(), work.layer);
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    PlannedArray& array = arrays[i];
    LIB_TRY(ArrayWriter writer, open_writer(tools, array));
    std::optional<ArrayWriter> scales;
    if (array.layout.type == activation_store::StoredType::f8_e4m3) {
      LIB_TRY(scales, open_writer(tools, arrays[++i]));
    }
    const auto kept = kept_rows_.find(array.positions.rows_name());
    const gpu_exec::DType rows_type =
        array.rows_as_stored ? gpu_exec::DType::f32 : context_.dtype;  // Or i32: as wide.
    work.outputs.emplace_back(array, rows_type, std::move(writer), std::move(scales),
                              kept == kept_rows_.end() ? nullptr : &kept->second);
  }
  return {};
}

Result<ArrayWriter> PartRun::open_writer(const PartTools& tools, PlannedArray& array) {
  const auto kept = kept_rows_.find(array.positions.rows_name());
  array.layout.rows = kept == kept_rows_.end() ? range_.tokens : kept->second.size();
  return ArrayWriter::create(context_.files, tools.encoder, directory_, array.name, array.layout,
                             nonce_, array.attributes);
}

ArrayGeometry PartRun::geometry() const {
  ArrayGeometry geometry;
  geometry.dtype = context_.dtype;
  geometry.codec = context_.codec;
  geometry.hidden_size = context_.checkpoint.spec().hidden_size;
  geometry.chunk_tokens = context_.chunk_tokens;
  geometry.shard_tokens = context_.shard_tokens;
  return geometry;
}

Result<void> PartRun::prefetch_after(const PartTools& tools, std::int32_t layer) {
  if (layer == last_layer_) {
    return on_last_layer_();
  }
  tools.weights.prefetch(layer + 1, readings(layer + 1));
  return {};
}

/// Takes the embedding's weights as they come, times the waits, and keeps what the tensors were.
/// @param use  Called with each piece, which goes away afterwards.
Result<void> PartRun::take_weights(
    const PartTools& tools, LayerWork& work, Duration& busy,
    const std::function<Result<void>(const weightmap::ArrivedPiece&)>& use,
    const std::stop_token& stop) {
  weightmap::Lease lease = tools.weights.acquire(work.layer);
  LIB_TRY_VOID(prefetch_after(tools, work.layer));
  while (true) {
    std::optional<weightmap::ArrivedPiece> piece;
    {
      const Stopwatch watch(context_.clock, work.times.fetch_wait);
      LIB_TRY(piece, lease.next(stop));
    }
    if (!piece) {
      break;
    }
    const Stopwatch watch(context_.clock, busy);
    LIB_TRY_VOID(use(*piece));
    lease.give_back_oldest();
  }
  for (weightmap::TensorDigest& digest : lease.take_digests()) {
    work.weights[digest.name] = digest.xxh3.hex();
  }
  return {};
}

std::vector<std::uint32_t> PartRun::row_positions() const {
  std::vector<std::uint32_t> positions;
  positions.reserve(range_.tokens);
  for (std::size_t sample = 0; sample + 1 < offsets_.size(); ++sample) {
    for (std::int64_t row = offsets_[sample]; row < offsets_[sample + 1]; ++row) {
      positions.push_back(static_cast<std::uint32_t>(row - offsets_[sample]));
    }
  }
  return positions;
}

Result<void> PartRun::run_embedding(const PartTools& tools, LayerWork& work,
                                    const std::stop_token& stop) {
  LIB_TRY_VOID(state_->begin_embedding(covering_array(work.layer)));
  const std::uint64_t hidden = context_.checkpoint.spec().hidden_size;
  const std::uint64_t row_bytes = hidden * gpu_exec::dtype_bytes(context_.dtype);
  std::vector<std::byte> converted(row_bytes);
  const auto first_token = static_cast<std::size_t>(context_.tokens.offsets[range_.first_sample]);
  const std::span<const std::int32_t> ids =
      std::span(context_.tokens.input_ids).subspan(first_token, range_.tokens);
  gpu_exec::EmbeddingStage stage(context_.checkpoint.spec(), context_.dtype,
                                 context_.tokens.longest_sample());
  const std::vector<std::uint32_t> positions = row_positions();
  const auto gather = [&](const weightmap::ArrivedPiece& piece) -> Result<void> {
    if (piece.tensor->key.role != gpu_exec::WeightRole::embedding) {
      return stage.load(piece.tensor->key.role, piece.tensor->dtype, piece.bytes);
    }
    const gpu_exec::DType table_type = piece.tensor->dtype;
    const std::uint64_t table_row = hidden * gpu_exec::dtype_bytes(table_type);
    const std::uint64_t begin = piece.offset / table_row;
    const std::uint64_t end = begin + piece.bytes.size() / table_row;
    for (std::uint64_t row = 0; row < ids.size(); ++row) {
      const auto id = static_cast<std::uint64_t>(ids[row]);
      if (id >= begin && id < end) {
        stage.finish(table_type, piece.bytes.subspan((id - begin) * table_row, table_row),
                     positions[row], converted);
        LIB_TRY_VOID(state_->put_row(row, converted));
      }
    }
    return {};
  };
  LIB_TRY_VOID(take_weights(tools, work, work.times.compute_busy, gather, stop));
  LIB_TRY(work.place, state_->end_layer(durable_state_due()));
  for (const BlockRange& block : blocks_) {
    LIB_TRY(const std::span<const std::byte> rows, state_->load(block.row_begin, block.rows));
    LIB_TRY_VOID(check_finite(rows, context_.dtype, work, block.row_begin));
    for (CaptureSink& output : work.outputs) {
      const Stopwatch watch(context_.clock, work.times.capture_wait);
      LIB_TRY_VOID(output.append(rows, block.row_begin, stop));
    }
  }
  return {};
}

std::uint32_t PartRun::readings(std::int32_t layer) const {
  const bool is_layer = layer >= 0 && layer < context_.checkpoint.layer_count();
  return context_.blocks_together == 0 || !is_layer
             ? 1
             : static_cast<std::uint32_t>((blocks_.size() + context_.blocks_together - 1) /
                                          context_.blocks_together);
}

Result<void> PartRun::run_layer(const PartTools& tools, WeightLoader& loader, LayerWork& work,
                                const std::stop_token& stop) {
  const bool streams = context_.blocks_together != 0;
  if (streams) {
    work.weight_bytes = 0;  // It comes stage by stage, without what no token needs.
  } else {
    LIB_TRY(work.weights, loader.load(work.layer, work.times, stop));
  }
  const bool needed = work.layer < last_layer_;
  LIB_TRY_VOID(state_->begin_layer(work.layer, covering_array(work.layer), needed));
  std::vector<gpu_exec::Block> blocks;
  for (const BlockRange& block : blocks_) {
    blocks.push_back({block.segments, block.rows});
  }
  BlockIo io(*this, loader, work, stop);
  // Stages are loaded inside of run().
  const auto elsewhere = [&work] {
    return work.times.capture_wait + work.times.fetch_wait + work.times.load_busy;
  };
  const auto run = [&](std::span<const gpu_exec::Block> group) {
    const Duration before = elsewhere();
    const Stopwatch watch(context_.clock, work.times.compute_busy);
    auto done = tools.executor.run(group, io, stop);
    work.times.compute_busy -= elsewhere() - before;
    return done;
  };
  const std::uint32_t all_readings = streams ? readings(work.layer) : 0;
  if (!streams) {
    LIB_TRY_VOID(run(blocks));
  }
  for (std::uint32_t reading = 0; reading < all_readings; ++reading) {
    const std::size_t first = reading * context_.blocks_together;
    io.set_first_block(first);
    LIB_TRY_VOID(loader.begin_stages(work.layer, reading, all_readings, work.times, stop));
    LIB_TRY_VOID(run(std::span(blocks).subspan(
        first, std::min<std::size_t>(context_.blocks_together, blocks.size() - first))));
    LIB_TRY(const auto digests, loader.end_stages(stop));
    LIB_TRY_VOID(context_.known_weights.check(digests));
    work.weights.insert(digests.begin(), digests.end());
  }
  loader.layer_done();
  const Stopwatch watch(context_.clock, work.times.commit_wait);
  LIB_TRY(work.place, state_->end_layer(needed && durable_state_due()));
  return {};
}

Result<void> PartRun::run_final_norm(const PartTools& tools, WeightLoader& loader, LayerWork& work,
                                     const std::stop_token& stop) {
  LIB_TRY(work.weights, loader.load(work.layer, work.times, stop));
  return write_final_norm(tools, work, stop);
}

Result<void> PartRun::write_final_norm(const PartTools& tools, LayerWork& work,
                                       const std::stop_token& stop) {
  if (!context_.captures.final_norm) {
    return {};
  }
  const std::uint64_t row_bytes =
      context_.checkpoint.spec().hidden_size * gpu_exec::dtype_bytes(context_.dtype);
  std::vector<std::byte> normed(std::min(context_.block_tokens, range_.tokens) * row_bytes);
  const Stopwatch watch(context_.clock, work.times.compute_busy);
  for (const BlockRange& block : blocks_) {
    LIB_TRY(const std::span<const std::byte> rows, state_->load(block.row_begin, block.rows));
    const std::span<std::byte> out = std::span(normed).first(rows.size());
    LIB_TRY_VOID(tools.executor.run_final_norm(rows, out));
    LIB_TRY_VOID(check_finite(out, context_.dtype, work, block.row_begin));
    // The arrays of logits.topk, if there are any, come behind.
    LIB_TRY_VOID(work.outputs.front().append(out, block.row_begin, stop));
  }
  return {};
}

Result<void> PartRun::check_finite(std::span<const std::byte> rows, gpu_exec::DType type,
                                   const LayerWork& work, std::uint64_t row_begin) const {
  if (context_.allow_nonfinite) {
    return {};
  }
  const std::optional<std::uint64_t> element = first_nonfinite(rows, type);
  if (!element) {
    return {};
  }
  const auto row =
      static_cast<std::int64_t>(row_begin + *element / context_.checkpoint.spec().hidden_size);
  return nonfinite_at(work.layer < 0 ? "the embedding" : "layer " + std::to_string(work.layer),
                      row);
}

Error PartRun::nonfinite_at(const std::string& where, std::int64_t row) const {
  const auto sample =
      std::upper_bound(offsets_.begin(), offsets_.end(), row) - offsets_.begin() - 1;
  return Error(ErrorCode::bad_input,
               context_.source.uri + ": " + where + " gives NaN or infinity (first in sample " +
                   std::to_string(range_.first_sample + static_cast<std::uint64_t>(sample)) +
                   ", position " +
                   std::to_string(row - offsets_[static_cast<std::size_t>(sample)]) +
                   "): broken weights, or a --dtype too narrow for this model; "
                   "--allow-nonfinite keeps such values");
}

}  // namespace librarian::ingest
