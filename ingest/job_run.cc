// Doing a job: parts in turn, each claimed, run and published.
#include <algorithm>
#include <array>
#include <ctime>

#include "base/units.h"
#include "base/version.h"
#include "ingest/job.h"
#include "ingest/layer_flops.h"
#include "ingest/part_run.h"
#include "ingest/skeleton.h"
#include "ingest/source_pin.h"
#include "ingest/store_directory.h"
#include "weightmap/host_ring.h"
#include "weightmap/remote/hub_place.h"

namespace librarian::ingest {
namespace {

using namespace std::chrono_literals;
using activation_store::EncodePool;
using weightmap::VirtualWeightMap;
using weightmap::remote::StagingDirectory;

constexpr auto kLookAgain = 1s;

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  std::array<char, 32> text{};
  ::gmtime_r(&now, &parts);
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text.data();
}

/// Adds up what the layers took while passing the events on.
class Recorder final : public JobObserver {
 public:
  explicit Recorder(JobObserver& next) : next_(next) {}

  void part_started(std::uint64_t part, std::uint64_t tokens, std::int32_t first_layer) override {
    next_.part_started(part, tokens, first_layer);
  }
  void rows_done(std::uint64_t part, std::int32_t layer, std::uint64_t done,
                 std::uint64_t total) override {
    next_.rows_done(part, layer, done, total);
  }
  void layer_done(const LayerDone& event) override {
    const LayerTimes& times = event.times;
    report_.layer_tokens += event.layer >= 0 ? event.tokens : 0;
    report_.raw_bytes += event.raw_bytes;
    report_.stored_bytes += event.stored_bytes;
    report_.fetch_wait += times.fetch_wait;
    report_.load_busy += times.load_busy;
    report_.compute_busy += times.compute_busy;
    report_.capture_wait += times.capture_wait;
    report_.commit_wait += times.commit_wait;
    layers_.push_back(event);
    next_.layer_done(event);
  }
  void part_done(std::uint64_t part) override { next_.part_done(part); }
  void skeleton_started(std::uint64_t bytes) override { next_.skeleton_started(bytes); }
  void skeleton_done(std::uint64_t bytes) override { next_.skeleton_done(bytes); }
  void waiting(const std::string& holders) override { next_.waiting(holders); }
  void warning(const std::string& text) override { next_.warning(text); }

  RunReport& report() { return report_; }

  /// The bound of the layers seen so far, part by part.
  /// @param fetch, write  Time per byte that the stages needed over the whole run.
  PaceBound bound(double fetch_ns_per_byte, double write_ns_per_byte) const {
    PaceBound total;
    for (auto begin = layers_.begin(); begin != layers_.end();) {
      const auto end = std::find_if(
          begin, layers_.end(), [&](const LayerDone& layer) { return layer.part != begin->part; });
      std::vector<LayerPace> paces;
      for (; begin != end; ++begin) {
        paces.push_back({time_of(begin->fetched_bytes, fetch_ns_per_byte),
                         begin->times.load_busy + begin->times.compute_busy,
                         time_of(begin->stored_bytes, write_ns_per_byte)});
      }
      const PaceBound part = pace_bound(paces);
      total.bound += part.bound;
      total.fetch_bound += part.fetch_bound;
      total.compute_bound += part.compute_bound;
      total.write_bound += part.write_bound;
    }
    return total;
  }

 private:
  static Duration time_of(std::uint64_t bytes, double ns_per_byte) {
    return Duration(static_cast<std::int64_t>(static_cast<double>(bytes) * ns_per_byte));
  }

  JobObserver& next_;
  std::vector<LayerDone> layers_;
  RunReport report_;
};

double ns_per_byte(Duration time, std::uint64_t bytes) {
  return bytes == 0 ? 0 : static_cast<double>(time.count()) / static_cast<double>(bytes);
}

/// One number for "the same store": over every part's array names and row digests.
Result<std::string> store_digest(FileSystem& files, const std::string& directory,
                                 std::uint64_t parts) {
  std::string text;
  for (std::uint64_t part = 0; part < parts; ++part) {
    LIB_TRY(const activation_store::PartFile file,
            activation_store::read_part_file(
                files, directory + "/" + activation_store::part_directory_name(part)));
    std::vector<std::string> lines;
    for (const activation_store::ArrayRecord& array : file.arrays) {
      lines.push_back(array.name + " " + array.rows_xxh3.hex() + "\n");
    }
    std::sort(lines.begin(), lines.end());
    for (const std::string& line : lines) {
      text += line;
    }
  }
  return xxh3_128(text).hex();
}

/// Requests of which twice as many as there are connections fit into the ring: while some are used,
/// others come. What lies between the tensors of one stage is wanted by another.
weightmap::RequestLimits request_limits(const MemoryPlan& memory, std::uint32_t connections) {
  weightmap::RequestLimits limits;
  limits.request_bytes_max =
      std::clamp(memory.ring_bytes / (2 * std::uint64_t{connections}), kMiB, 64 * kMiB);
  if (memory.executor_memory.streamed) {
    limits.hole_bytes_max = 0;
  }
  limits.together = connections;
  return limits;
}

std::string outcome_name(ErrorCode code) {
  return code == ErrorCode::cancelled ? "stopped" : error_code_name(code);
}

}  // namespace

/// Claims, runs and publishes parts until there is nothing left to do.
class PartLoop {
 public:
  PartLoop(const PartContext& context, const PartTools& tools,
           const std::vector<activation_store::PartRange>& parts, RunReport& report)
      : context_(context), tools_(tools), parts_(parts), report_(report) {}

  Result<void> run(const std::stop_token& stop) {
    LIB_TRY_VOID(claim());
    while (complete_ < parts_.size()) {
      if (!next_) {
        context_.observer.waiting(holders_);
        if (!context_.clock.sleep_for(kLookAgain, stop)) {
          return Error(ErrorCode::cancelled, "stopped while waiting for other processes");
        }
        LIB_TRY_VOID(claim());
        continue;
      }
      const std::unique_ptr<PartRun> current = std::move(next_);
      running_ = current->part();
      LIB_TRY_VOID(current->run(
          tools_, [this] { return claim_ahead(); }, stop));
      running_.reset();
      ++report_.parts_done_here;
      report_.tokens_done_here += parts_[current->part()].tokens;
      if (!next_) {
        LIB_TRY_VOID(claim());
      }
    }
    return {};
  }

 private:
  Result<void> claim() {
    LIB_TRY(PartClaim claimed, claim_part(context_.files, context_.clock, context_.store_directory,
                                          context_.scratch_root, parts_.size(), running_));
    complete_ = claimed.complete;
    holders_ = claimed.holders;
    if (claimed.part) {
      LIB_TRY(next_, PartRun::open(context_, *claimed.part, parts_[*claimed.part],
                                   std::move(claimed.lock)));
    }
    const std::uint64_t ours = (running_ ? 1 : 0) + (next_ ? 1 : 0);
    context_.weight_source.expect_another_pass(complete_ + ours < parts_.size());
    return {};
  }

  /// Takes the next part while the last layer of this one computes, and lets its weights come.
  Result<void> claim_ahead() {
    LIB_TRY_VOID(claim());
    if (next_ && next_->first_layer() <= next_->last_layer()) {
      tools_.weights.prefetch(next_->first_layer(), next_->readings(next_->first_layer()));
    }
    return {};
  }

  const PartContext& context_;
  const PartTools& tools_;
  const std::vector<activation_store::PartRange>& parts_;
  RunReport& report_;
  std::unique_ptr<PartRun> next_;
  std::optional<std::uint64_t> running_;
  std::uint64_t complete_ = 0;
  std::string holders_;
};

/// Claims, runs and publishes parts; everything that this takes is given back when it returns.
/// @param outcome  How it ended, where there is a report of it.
Result<RunReport> PreparedJob::run_parts(KnownWeights& known_weights, JobObserver& observer,
                                         Result<void>& outcome, const std::stop_token& stop) {
  Clock& clock = *environment_.clock;
  FileSystem& files = *environment_.files;
  const double peak_flops = device_->peak_flops(dtype_);
  EncodePool encoder(clock, memory_.encode);
  Recorder recorder(observer);
  const weightmap::remote::FetchStatistics before = fetcher_->statistics();
  gpu_exec::DeviceMemory ring;
  if (device_plan_) {
    LIB_TRY(ring, device_->allocate_host(weightmap::HostRing::slot_bytes(memory_.ring_bytes)));
  }
  std::unique_ptr<StagingDirectory> staging;
  LIB_TRY(const std::unique_ptr<weightmap::WeightSource> source, open_weight_source(staging));
  VirtualWeightMap weights(*source, clock, *checkpoint_,
                           {memory_.ring_bytes, kTablePieceBytes,
                            request_limits(memory_, options_.connections), std::move(ring)});
  // Its end comes before that of the weights: a device may still read them when a run is cut short.
  LIB_TRY(const std::unique_ptr<gpu_exec::LayerExecutor> executor,
          gpu_exec::LayerExecutor::create(checkpoint_->spec(), memory_.executor, *device_));

  PartContext context{clock,           files,
                      *checkpoint_,    tokens_,
                      captures_,       known_weights,
                      recorder,        *source,
                      source_record(), identity_digest_,
                      device_kind_,    executor->products(),
                      options_.out,    scratch_root()};
  context.dtype = dtype_;
  context.codec = options_.codec;
  context.chunk_tokens = chunk_tokens_;
  context.shard_tokens = shard_tokens_;
  context.block_tokens = memory_.block_tokens;
  context.blocks_together = executor->streams() ? executor->blocks_together() : 0;
  context.state_in_memory = memory_.state_in_memory;
  context.save_state_every = options_.save_state_every;
  context.allow_nonfinite = options_.allow_nonfinite;
  context.part_count = parts_.size();
  const PartTools tools{weights, *fetcher_, *executor, encoder};

  RunReport& report = recorder.report();
  PartLoop loop(context, tools, parts_, report);
  outcome = loop.run(stop);

  const weightmap::remote::FetchStatistics after = fetcher_->statistics();
  report.fetched_bytes = after.body_bytes - before.body_bytes;
  report.requests = after.requests - before.requests;
  report.retries = after.retries - before.retries;
  report.resolves = after.resolves;
  report.hedges = after.hedges - before.hedges;
  report.hedge_bytes = after.hedge_bytes - before.hedge_bytes;
  report.fetch_busy = after.busy - before.busy;
  report.needed_bytes = source->needed_bytes();
  report.ring_wait = weights.statistics().ring_wait;
  const EncodePool::Statistics encoded = encoder.statistics();
  report.encode_busy = encoded.encode_busy;
  report.write_busy = encoded.write_busy;
  report.bound =
      recorder.bound(ns_per_byte(report.fetch_busy, report.fetched_bytes),
                     ns_per_byte(std::max(encoded.encode_busy / threads_, encoded.write_busy),
                                 encoded.stored_bytes));
  report.compute_flops =
      tokens_.tokens() == 0
          ? 0
          : flops() * static_cast<double>(report.layer_tokens) /
                (static_cast<double>(tokens_.tokens()) * static_cast<double>(computed_layers()));
  report.peak_flops = peak_flops;
  report.device_planned_bytes = device_plan_ ? memory_.executor_memory.device_bytes() : 0;
  report.products = executor->products();
  report.memory_planned_bytes = memory_.total_bytes;
  report.memory_limit_bytes = memory_.limit_bytes;
  report.resident_peak_bytes = ingest::resident_peak_bytes();
  report.staging = staging ? "disk" : "memory";
  return report;
}

Result<RunReport> PreparedJob::run(JobObserver& observer, const std::stop_token& stop) {
  Clock& clock = *environment_.clock;
  FileSystem& files = *environment_.files;
  const TimePoint begin = clock.now();
  const std::string started = utc_now();

  LIB_TRY_VOID(check_disk());
  LIB_TRY_VOID(claim_store(files, clock, options_.out,
                           {identity_, identity_digest_, parts_, options_.skeleton}, stop));
  if (place_ != model_.uri) {
    const auto pinned = weightmap::remote::parse_hub_place(model_.uri.text);
    LIB_CHECK(pinned.has_value());
    LIB_TRY_VOID(write_source_pin(files, options_.out, place_.text, pinned->revision));
  }
  KnownWeights known_weights;
  LIB_TRY_VOID(known_weights.read_published(files, options_.out, parts_.size()));
  RunReport skeleton;
  RunReport report;
  Result<void> outcome;
  if (const auto tried = try_skeleton(known_weights, observer, skeleton, stop); !tried) {
    outcome = tried.error();
  } else {
    LIB_TRY(report, run_parts(known_weights, observer, outcome, stop));
  }
  if (outcome) {
    outcome = finish_skeleton(known_weights, observer, skeleton, stop);
  }
  if (!outcome && stop.stop_requested()) {
    outcome = Error(ErrorCode::cancelled, "stopped; the same command resumes");
  }

  report.tool_version = kVersion;
  report.started = started;
  report.outcome = !outcome                     ? outcome_name(outcome.error().code())
                   : report.parts_done_here > 0 ? "complete"
                                                : "already complete";
  report.model = model_.uri.display();
  report.device_kind = device_kind_;
  report.threads = threads_;
  report.parts_total = parts_.size();
  report.wall = clock.now() - begin;
  report.skeleton_bytes = skeleton.skeleton_bytes;
  report.needed_bytes += skeleton.needed_bytes;
  report.fetched_bytes += skeleton.fetched_bytes;
  report.requests += skeleton.requests;
  report.retries += skeleton.retries;
  report.hedges += skeleton.hedges;
  report.hedge_bytes += skeleton.hedge_bytes;
  if (outcome) {
    LIB_TRY(report.store_digest, store_digest(files, options_.out, parts_.size()));
    LIB_TRY_VOID(remove_source_pin(files, options_.out));
    LIB_TRY_VOID(remove_scratch());
  }
  write_report(report);
  if (!outcome) {
    return outcome.error();
  }
  return report;
}

/// Writes the skeleton if nobody else is at it. Nothing of a part is in memory meanwhile, so it may
/// take what the parts will.
/// @return  Who is at it; empty: it is there, or not wanted.
Result<std::string> PreparedJob::try_skeleton(KnownWeights& known_weights, JobObserver& observer,
                                              RunReport& report, const std::stop_token& stop) {
  if (!options_.skeleton) {
    return std::string();
  }
  const weightmap::remote::FetchStatistics before = fetcher_->statistics();
  SkeletonInputs inputs;
  inputs.checkpoint = &*checkpoint_;
  inputs.store_directory = options_.out;
  inputs.identity_digest = identity_digest_;
  inputs.known_weights = &known_weights;
  inputs.memory_bytes = memory_.total_bytes - memory_.table_bytes;
  inputs.on_begun = [&] { observer.skeleton_started(skeleton_tensor_bytes(*checkpoint_)); };
  LIB_TRY(const SkeletonOutcome outcome,
          write_skeleton(*fetcher_, *environment_.files, *environment_.clock, inputs, stop));
  const weightmap::remote::FetchStatistics after = fetcher_->statistics();
  report.skeleton_bytes += outcome.fetched_bytes;
  report.needed_bytes += outcome.fetched_bytes;
  report.fetched_bytes += after.body_bytes - before.body_bytes;
  report.requests += after.requests - before.requests;
  report.retries += after.retries - before.retries;
  report.hedges += after.hedges - before.hedges;
  report.hedge_bytes += after.hedge_bytes - before.hedge_bytes;
  if (!outcome.warning.empty()) {
    observer.warning(outcome.warning);
  }
  if (outcome.fetched_bytes > 0) {
    observer.skeleton_done(outcome.fetched_bytes);
  }
  return outcome.there ? std::string() : outcome.holder;
}

/// A store is complete when its skeleton is there, too: whoever was at it may have died.
Result<void> PreparedJob::finish_skeleton(KnownWeights& known_weights, JobObserver& observer,
                                          RunReport& report, const std::stop_token& stop) {
  while (true) {
    LIB_TRY(const std::string holder, try_skeleton(known_weights, observer, report, stop));
    if (holder.empty()) {
      return {};
    }
    observer.waiting("model: " + holder);
    if (!environment_.clock->sleep_for(kLookAgain, stop)) {
      return Error(ErrorCode::cancelled, "stopped while waiting for other processes");
    }
  }
}

/// A report is worth little next to leaving in time: others' locks are not waited for long, and a
/// disk that does not take it does not undo the run.
void PreparedJob::write_report(const RunReport& report) {
  FileSystem& files = *environment_.files;
  for (int attempt = 0; attempt < 20; ++attempt) {
    auto lock = DirectoryLock::try_acquire(files, *environment_.clock, options_.out);
    if (!lock || lock->lock) {
      if (lock) {
        static_cast<void>(append_report(files, options_.out, report));
      }
      return;
    }
    environment_.clock->sleep_for(100ms, {});
  }
}

/// Layers whose flops() counts.
std::int32_t PreparedJob::computed_layers() const {
  return std::max(1, std::min(captures_.last_layer() + 1, checkpoint_->layer_count()));
}

Result<void> PreparedJob::check_disk() {
  FileSystem& files = *environment_.files;
  LIB_TRY(const std::optional<activation_store::JobFile> existing,
          read_existing_job(files, options_.out));
  LIB_TRY(const std::uint64_t needed, disk_needed_bytes());
  const std::string where = existing_ancestor(files, options_.out);
  LIB_TRY(const std::uint64_t free, files.free_bytes(where));
  // A resumed part holds some of it already, which we cannot tell from here: only the first run,
  // where nothing is written, is refused.
  if (needed > free && !existing) {
    return Error(ErrorCode::does_not_fit, where + ": " + format_bytes(free) +
                                              " are free and the job needs about " +
                                              format_bytes(needed) +
                                              "; capture fewer layers or samples, or give --out on "
                                              "a larger disk");
  }
  return {};
}

SourceRecord PreparedJob::source_record() const {
  SourceRecord source;
  source.uri = model_.read_from.display();
  if (!source.uri.ends_with('/')) {
    source.uri += '/';
  }
  for (const weightmap::WeightFile& file : checkpoint_->files()) {
    source.files[file.name] = {file.info.validator, file.info.strong};
  }
  return source;
}

}  // namespace librarian::ingest
