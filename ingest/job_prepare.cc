// What is known before anything is computed.
#include <sched.h>

#include <algorithm>
#include <bit>

#include "activation_store/skeleton_file.h"
#include "base/units.h"
#include "gpu_exec/cuda_device.h"
#include "ingest/array_plan.h"
#include "ingest/identity.h"
#include "ingest/job.h"
#include "ingest/kept_rows.h"
#include "ingest/layer_flops.h"
#include "ingest/partition.h"
#include "ingest/skeleton.h"
#include "ingest/source_pin.h"
#include "ingest/store_directory.h"
#include "ingest/stored_type.h"
#include "ingest/tokenizer_check.h"

namespace librarian::ingest {
namespace {

constexpr std::uint64_t kChunksPerShardMax = 4096;
constexpr std::uint64_t kChunkBytesMax = 256 * kMiB;

int usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

int thread_count(const JobOptions& options) {
  return options.threads > 0 ? options.threads : usable_cpus();
}

}  // namespace

JobEnvironment JobEnvironment::real() {
  JobEnvironment environment;
  environment.clock = &real_clock();
  environment.files = &posix_file_system();
  environment.variables = weightmap::remote::process_environment();
  environment.make_transport = [](const JobOptions& options) {
    weightmap::remote::TransportOptions transport;
    transport.insecure_http = options.insecure_http;
    transport.connections = options.connections;
    transport.bandwidth_max = options.bandwidth_max;
    transport.headers = options.headers;
    if (const auto uri = weightmap::remote::parse_uri(options.model)) {
      transport.headers_origin = uri->origin();
    }
    return weightmap::remote::make_transport(real_clock(), transport);
  };
  environment.make_device = [](const JobOptions& options) {
    if (options.cuda) {
      return gpu_exec::make_cuda_device(*options.cuda);
    }
    return gpu_exec::make_cpu_device(options.isa.value_or(gpu_exec::best_cpu_isa()),
                                     thread_count(options));
  };
  return environment;
}

PreparedJob::PreparedJob(JobOptions options, JobEnvironment environment)
    : options_(std::move(options)), environment_(std::move(environment)) {}

PreparedJob::~PreparedJob() = default;

Result<std::unique_ptr<PreparedJob>> PreparedJob::create(const JobOptions& options,
                                                         const JobEnvironment& environment,
                                                         const std::stop_token& stop) {
  std::unique_ptr<PreparedJob> job(new PreparedJob(options, environment));
  LIB_TRY_VOID(job->prepare(stop));
  return job;
}

Result<void> PreparedJob::prepare(const std::stop_token& stop) {
  using weightmap::remote::Fetcher;
  LIB_TRY(place_, weightmap::remote::parse_uri(options_.model));
  if (auto allowed = weightmap::remote::check_allowed(place_, options_.insecure_http); !allowed) {
    return allowed.error().with_context(place_.display());
  }
  const std::uint64_t resident_before = resident_bytes();
  LIB_TRY(device_, environment_.make_device(options_));
  // What a driver maps; the device's own buffers are counted already.
  const std::uint64_t resident_more = std::max(resident_bytes(), resident_before) - resident_before;
  device_overhead_bytes_ = std::max(resident_more, device_->host_bytes()) - device_->host_bytes();
  device_kind_ = device_->kind();
  threads_ = thread_count(options_);
  transport_ = environment_.make_transport(options_);
  weightmap::remote::FetcherOptions fetching;
  fetching.connections = options_.connections;
  fetching.hedge_budget = options_.hedge_budget;
  fetcher_ = std::make_unique<Fetcher>(*transport_, *environment_.clock, fetching);
  const std::optional<std::string> known_commit =
      options_.out.empty() ? std::nullopt
                           : read_source_pin(*environment_.files, options_.out, place_.text);
  LIB_TRY(model_, weightmap::remote::pin_model(*fetcher_, place_, known_commit,
                                               environment_.variables, stop));
  LIB_TRY(checkpoint_, weightmap::Checkpoint::open(*fetcher_, model_.read_from, stop));

  for (const std::string& text : checkpoint_->config().warnings) {
    warnings_.push_back(text);
  }
  dtype_ = options_.dtype.value_or(checkpoint_->dtype());
  if (checkpoint_->quantised()) {
    warnings_.emplace_back(
        "the weights are quantised: they are decoded to the type of the computation, and "
        "activations are not quantised, so engines that do quantise them differ by a little");
  }
  for (std::string& text : device_->warnings(dtype_)) {
    warnings_.push_back(std::move(text));
  }
  LIB_TRY(captures_, parse_captures(options_.captures, capture_shape(checkpoint_->spec())));
  if (captures_.logits) {
    if (captures_.logits->k > gpu_exec::kTopkMax) {
      return Error(ErrorCode::invalid_argument,
                   "--capture " + std::string(kLogitsTopk) + captures_.logits->text() + ": k is " +
                       std::to_string(gpu_exec::kTopkMax) + " at most");
    }
    LIB_TRY_VOID(checkpoint_->use_head());
  }
  TokenLimits limits;
  limits.vocab_size = checkpoint_->spec().vocab_size;
  limits.max_length = options_.max_length;
  limits.samples_max = options_.num_samples;
  LIB_TRY(tokens_, read_token_file(*environment_.files, options_.tokens, limits));
  LIB_TRY(std::optional<std::string> other_template,
          check_tokenizer(*fetcher_, *environment_.clock, model_.read_from, options_.tokens,
                          tokens_.origin, stop));
  if (other_template) {
    warnings_.push_back(*std::move(other_template));
  }
  LIB_TRY_VOID(check_positions(captures_, tokens_, options_.tokens));
  const gpu_exec::EmbeddingSpec& embedding = checkpoint_->spec().embedding;
  const std::uint32_t learned = embedding.positions - embedding.position_offset;
  if (embedding.positions != 0 && tokens_.longest_sample() > learned) {
    return Error(ErrorCode::bad_input, options_.tokens + ": the longest sample has " +
                                           format_count(tokens_.longest_sample()) +
                                           " tokens, and the model has learned only " +
                                           format_count(learned) + " positions; --max-length " +
                                           std::to_string(learned) + " cuts it");
  }
  const std::uint32_t tokens_max = checkpoint_->config().sample_tokens_max;
  if (tokens_max != 0 && tokens_.longest_sample() > tokens_max) {
    return Error(ErrorCode::bad_input,
                 options_.tokens + ": the longest sample has " +
                     format_count(tokens_.longest_sample()) + " tokens, and beyond " +
                     format_count(tokens_max) + " this model needs " +
                     checkpoint_->config().samples_need + ", which is not built in; --max-length " +
                     std::to_string(tokens_max) + " cuts it");
  }
  const std::uint32_t positions = checkpoint_->spec().max_positions;
  if (embedding.positions == 0 && positions != 0 && tokens_.longest_sample() > positions) {
    warnings_.push_back("the longest sample has " + format_count(tokens_.longest_sample()) +
                        " tokens, beyond the " + format_count(positions) +
                        " positions the model was made for; --max-length " +
                        std::to_string(positions) + " would cut it");
  }
  LIB_TRY_VOID(prepare_geometry());
  LIB_TRY_VOID(prepare_partition());
  if (captures_.logits) {
    count_logit_rows();
  }
  LIB_TRY_VOID(plan());

  IdentityInputs inputs;
  inputs.checkpoint = &*checkpoint_;
  inputs.tokens = &tokens_;
  inputs.captures = &captures_;
  inputs.dtype = dtype_;
  inputs.codec = options_.codec;
  inputs.chunk_tokens = chunk_tokens_;
  inputs.shard_tokens = shard_tokens_;
  inputs.parts = &parts_;
  identity_ = make_identity(inputs);
  identity_digest_ = ingest::identity_digest(identity_);
  return plan_weight_staging();
}

/// Sizes of chunks and shards: one number each for the whole job.
Result<void> PreparedJob::prepare_geometry() {
  const std::uint64_t width = checkpoint_->spec().hidden_size;
  const std::uint64_t row_bytes = width * gpu_exec::dtype_bytes(dtype_);
  chunk_tokens_ = options_.chunk_tokens != 0
                      ? options_.chunk_tokens
                      : activation_store::default_chunk_tokens(width, stored_type(dtype_));
  shard_tokens_ = options_.shard_tokens != 0
                      ? options_.shard_tokens
                      : chunk_tokens_ * activation_store::kDefaultChunksPerShard;
  if (!std::has_single_bit(chunk_tokens_) || chunk_tokens_ > kChunkBytesMax / row_bytes) {
    return Error(ErrorCode::invalid_argument, "--chunk-tokens " + std::to_string(chunk_tokens_) +
                                                  ": must be a power of two with at most " +
                                                  format_bytes(kChunkBytesMax) + " of rows");
  }
  if (shard_tokens_ % chunk_tokens_ != 0 || shard_tokens_ / chunk_tokens_ > kChunksPerShardMax) {
    return Error(ErrorCode::invalid_argument, "--shard-tokens " + std::to_string(shard_tokens_) +
                                                  ": must be a multiple of --chunk-tokens (" +
                                                  std::to_string(chunk_tokens_) + ") and at most " +
                                                  std::to_string(kChunksPerShardMax) + " chunks");
  }
  return {};
}

/// The partition belongs to the job: a later command without the option takes it from there.
Result<void> PreparedJob::prepare_partition() {
  std::optional<activation_store::JobFile> existing;
  if (!options_.out.empty()) {
    LIB_TRY(existing, read_existing_job(*environment_.files, options_.out));
  }
  if (existing && options_.part_tokens == 0) {
    std::uint64_t samples = 0;
    std::uint64_t tokens = 0;
    for (const activation_store::PartRange& part : existing->parts) {
      samples += part.samples;
      tokens += part.tokens;
    }
    // Other samples make another identity, which is refused with its reasons later.
    if (samples == tokens_.samples() && tokens == tokens_.tokens()) {
      parts_ = existing->parts;
      return {};
    }
  }
  const std::uint64_t state_bytes = checkpoint_->spec().hidden_size * gpu_exec::dtype_bytes(dtype_);
  parts_ =
      partition_samples(tokens_.offsets, options_.part_tokens != 0 ? options_.part_tokens
                                                                   : auto_part_tokens(state_bytes));
  return {};
}

void PreparedJob::count_logit_rows() {
  for (const activation_store::PartRange& part : parts_) {
    const std::uint64_t rows = kept_row_count(tokens_, part, captures_.logits->positions);
    logit_rows_ += rows;
    logit_rows_max_ = std::max(logit_rows_max_, rows);
  }
}

Result<void> PreparedJob::plan() {
  MemoryInputs memory;
  memory.checkpoint = &*checkpoint_;
  memory.captures = &captures_;
  memory.device = device_.get();
  memory.dtype = dtype_;
  memory.codec = options_.codec;
  memory.chunk_tokens = chunk_tokens_;
  memory.shard_tokens = shard_tokens_;
  for (const activation_store::PartRange& part : parts_) {
    memory.part_tokens_max = std::max(memory.part_tokens_max, part.tokens);
    std::uint64_t kept = 0;
    for (const auto& [name, positions] : positions_of(captures_)) {
      kept += kept_row_count(tokens_, part, positions);
    }
    memory.kept_row_bytes = std::max(memory.kept_row_bytes, kept * sizeof(std::int64_t));
  }
  memory.sample_tokens_max = tokens_.longest_sample();
  memory.token_bytes = tokens_.memory_bytes();
  memory.limit_bytes = options_.host_memory_bytes.value_or(default_host_memory_bytes());
  memory.block_tokens = options_.block_tokens;
  memory.state = options_.state;
  memory.threads = threads_;
  memory.blocks_max =
      [this, known = std::map<std::uint64_t, std::uint64_t>()](std::uint64_t block_tokens) mutable {
        std::uint64_t& most = known[block_tokens];
        if (most != 0) {
          return most;
        }
        most = 1;
        for (const activation_store::PartRange& part : parts_) {
          const std::span<const std::int64_t> offsets =
              std::span(tokens_.offsets).subspan(part.first_sample, part.samples + 1);
          most = std::max<std::uint64_t>(most, plan_blocks(offsets, block_tokens).size());
        }
        return most;
      };
  memory.logit_rows_max = logit_rows_max_;
  memory.staging_segment_bytes = staging_segment_bytes(*checkpoint_, options_.staging);
  LIB_TRY(memory_, plan_memory(memory));
  if (memory_.executor_memory.streamed) {
    checkpoint_->order_by_stage();
  }
  LIB_TRY(layer_sizes_, ingest::layer_sizes(*checkpoint_, captures_, memory_, *device_));
  device_plan_ = plan_device(*checkpoint_, captures_, parts_, memory_, layer_sizes_, *device_);
  if (device_plan_) {
    device_plan_->host_overhead_bytes = device_overhead_bytes_;
  }

  DiskInputs disk;
  disk.tokens = tokens_.tokens();
  disk.part_tokens_max = memory.part_tokens_max;
  disk.row_bytes = checkpoint_->spec().hidden_size * gpu_exec::dtype_bytes(dtype_);
  disk.arrays = disk_arrays();
  disk.codec = options_.codec;
  disk.state_in_memory = memory_.state_in_memory;
  for (std::int32_t layer = weightmap::kEmbeddingLayer; layer < captures_.last_layer(); ++layer) {
    // A state on disk cannot read the embedding back from its array: the table gave its rows in
    // another order.
    disk.uncovered_layers += layer >= 0 && captures_.keeps_state_of(layer) ? 0 : 1;
  }
  disk.skeleton_bytes = wants_skeleton() ? skeleton_tensor_file_bytes(*checkpoint_) : 0;
  disk_ = plan_disk(disk);
  if (options_.disk_limit_bytes && disk_.peak_bytes > *options_.disk_limit_bytes) {
    return Error(ErrorCode::does_not_fit,
                 "the job needs about " + format_bytes(disk_.peak_bytes) +
                     " of disk, more than --disk-limit " +
                     format_bytes(*options_.disk_limit_bytes) +
                     "; capture fewer layers or samples, or raise the limit");
  }
  return {};
}

std::vector<DiskArray> PreparedJob::disk_arrays() const {
  const ArrayGeometry geometry{dtype_, options_.codec, checkpoint_->spec().hidden_size,
                               chunk_tokens_, shard_tokens_};
  const activation_store::PartRange whole{0, tokens_.samples(), tokens_.tokens()};
  std::map<std::string, std::uint64_t> rows{{"", tokens_.tokens()}};
  for (const auto& [name, positions] : positions_of(captures_)) {
    rows[name] = kept_row_count(tokens_, whole, positions);
  }
  std::vector<DiskArray> arrays;
  for (const PlannedArray& planned : planned_arrays(captures_, geometry)) {
    DiskArray array;
    array.name = planned.name;
    array.rows = rows.at(planned.positions.rows_name());
    array.row_bytes = activation_store::row_bytes(planned.layout);
    array.type = planned.layout.type;
    array.keep_mantissa_bits = planned.attributes.keep_mantissa_bits;
    arrays.push_back(std::move(array));
  }
  return arrays;
}

Result<bool> PreparedJob::save_tokenizer(const std::string& path, const std::stop_token& stop) {
  return ingest::save_tokenizer(*fetcher_, *environment_.files, model_.read_from, path, stop);
}

std::uint64_t PreparedJob::fetch_bytes() const {
  return part_fetch_bytes() * (staging_.holds_all() ? 1 : parts_.size()) + skeleton_fetch_bytes();
}

std::uint64_t PreparedJob::skeleton_fetch_bytes() const {
  return disk_.skeleton_bytes == 0 ? 0 : skeleton_tensor_bytes(*checkpoint_);
}

bool PreparedJob::wants_skeleton() const {
  return options_.skeleton &&
         (options_.out.empty() ||
          !environment_.files->info(options_.out + "/" + activation_store::kSkeletonDirectory +
                                    "/" + activation_store::kSkeletonFileName));
}

std::uint64_t PreparedJob::part_fetch_bytes() const {
  return staging_.on_disk ? staging_.file_bytes : staging_.needed_bytes;
}

std::uint64_t PreparedJob::fetched_bytes() const { return fetcher_->statistics().body_bytes; }

double PreparedJob::flops() const {
  const std::int32_t layers = std::min(captures_.last_layer() + 1, checkpoint_->layer_count());
  double total = 0;
  for (std::int32_t layer = 0; layer < layers; ++layer) {
    total += layer_flops(checkpoint_->spec(), static_cast<std::uint32_t>(layer), tokens_.offsets);
  }
  return total + 2.0 * static_cast<double>(logit_rows_) * checkpoint_->spec().hidden_size *
                     checkpoint_->spec().vocab_size;
}

Result<double> PreparedJob::measure_flops() const {
  if (device_plan_) {
    // Small products say little of a GPU; layers reach about this of what large ones do.
    constexpr double kOfPeak = 0.75;
    return kOfPeak * device_->peak_flops(dtype_);
  }
  // Large enough for full rate, small enough to be over at once.
  constexpr std::uint64_t kRows = 256;
  constexpr std::uint64_t kWidth = 1024;
  const std::uint64_t element = gpu_exec::dtype_bytes(dtype_);
  const std::uint64_t packed = device_->packed_bytes(kWidth, kWidth, dtype_);
  const std::uint64_t rows = kRows * kWidth * element;
  const std::uint64_t scratch = device_->scratch_bytes({});
  LIB_TRY(const gpu_exec::DeviceMemory memory, device_->allocate(packed + 2 * rows + scratch));
  gpu_exec::LinearOp op;
  op.matrix = {memory.get(), dtype_, nullptr, false};
  op.x = memory.get() + packed;
  op.y = memory.get() + packed + rows;
  op.dtype = dtype_;
  op.rows = kRows;
  op.inputs = kWidth;
  op.outputs = kWidth;
  // Random bits below an exponent of one: zeros would flatter the arithmetic.
  std::vector<std::byte> noise(kWidth * kWidth * element);
  std::uint32_t state = 1;
  for (std::size_t i = 0; i < noise.size(); ++i) {
    state = state * 1664525U + 1013904223U;
    const bool high = i % element == element - 1;
    noise[i] = static_cast<std::byte>(high ? 0x3C | (state >> 24U & 0x81U) : state >> 24U);
  }
  device_->pack_matrix({noise.data(), dtype_, {}, false, 0}, kWidth, kWidth, memory.get());
  std::copy_n(noise.begin(), rows, memory.get() + packed);
  constexpr double kFlops = 2.0 * kRows * kWidth * kWidth;
  double best = 0;
  for (int repeat = 0; repeat < 8; ++repeat) {
    const TimePoint begin = real_clock().now();
    device_->linear(op, memory.get() + packed + 2 * rows, {});
    const double seconds = std::chrono::duration<double>(real_clock().now() - begin).count();
    best = std::max(best, kFlops / std::max(seconds, 1e-9));
  }
  return best;
}

}  // namespace librarian::ingest
