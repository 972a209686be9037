#include <algorithm>
#include <array>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "base/units.h"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/output.h"
#include "cli/plan_json.h"
#include "cli/plan_sizes.h"
#include "ingest/job.h"

namespace librarian::cli {
namespace {

using ingest::MemoryPlan;
using ingest::PreparedJob;

// Rates that the time table assumes where nothing can be measured before the run.
constexpr double kSlowNetwork = 1e9 / 8;   // 1 Gbit/s
constexpr double kFastNetwork = 1e10 / 8;  // 10 Gbit/s
constexpr double kDisk = 1e9;
constexpr double kSlowBus = 12e9;  // PCIe 3, 16 lanes
constexpr double kFastBus = 24e9;  // PCIe 4

Duration seconds(double value) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(value));
}

std::string number(double value, const char* pattern) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), pattern, value);
  return text.data();
}

void print_captures(const PreparedJob& job) {
  const ingest::CaptureShape shape = ingest::capture_shape(job.checkpoint().spec());
  const std::vector<std::string>& names = job.captures().requested;
  print("captures (" + std::to_string(job.disk().arrays.size()) + " arrays)\n");
  for (const std::string& name : names) {
    const ingest::CaptureNotations other = ingest::capture_notations(name, shape);
    const auto alias = job.captures().aliases.find(name);
    std::string text = "transformers " + other.hf + "  vLLM " + other.vllm + "  TransformerLens " +
                       other.transformer_lens;
    if (alias != job.captures().aliases.end()) {
      text += "  (stored as " + alias->second + ")";
    }
    print(fact(name, text));
    std::uint64_t raw = 0;
    std::uint64_t stored = 0;
    for (const ingest::DiskArray& array : arrays_of(job, name)) {
      raw += array.rows * array.row_bytes;
      stored += array.store_bytes;
    }
    print(fact("", capture_options_text(job, name) + " " +
                       format_count(arrays_of(job, name).front().rows) + " rows, " +
                       format_bytes(stored) + " for " + format_bytes(raw)));
  }
}

void print_memory(const MemoryPlan& memory) {
  print("host memory\n");
  if (memory.packed_weight_bytes != 0) {
    print(fact("weights, packed", format_bytes(memory.packed_weight_bytes)));
  }
  print(fact("weights, arriving",
             format_bytes(memory.ring_bytes) +
                 (memory.whole_layer_prefetch
                      ? " (the next layer comes while this one runs)"
                      : " (part of a layer: more memory would let the next layer come earlier)")));
  print(fact("workspace", format_bytes(memory.workspace_bytes) + " (blocks of " +
                              format_count(memory.block_tokens) + " tokens)"));
  print(fact("state", format_bytes(memory.state_bytes) +
                          (memory.state_in_memory ? " (in memory)" : " (on disk)")));
  print(fact("encoding", format_bytes(memory.encode_bytes)));
  print(fact("tables", format_bytes(memory.table_bytes)));
  if (memory.head_passes != 0) {
    print(fact("logits", format_bytes(memory.logits_bytes) +
                             (memory.head_passes == 1
                                  ? " (the whole head at once)"
                                  : " (the head in " + std::to_string(memory.head_passes) +
                                        " parts, every row meets each)")));
  }
  if (memory.staging_bytes != 0) {
    print(fact("weights, staging", format_bytes(memory.staging_bytes)));
  }
  print(fact("total", format_bytes(memory.total_bytes) + " of " + format_bytes(memory.limit_bytes) +
                          "; code and libraries come on top, at most 150 MiB"));
}

/// Stages of nothing but experts that take the same are told together.
void print_stages(const std::vector<gpu_exec::StageSummary>& stages) {
  for (std::size_t i = 0; i < stages.size();) {
    std::size_t end = i + 1;
    while (end < stages.size() && stages[i].experts_only && stages[end].experts_only &&
           stages[end].bytes == stages[i].bytes) {
      ++end;
    }
    print(fact("", format_bytes(stages[i].bytes) + "  " + stages[i].text +
                       (end == i + 1 ? ""
                                     : ", then " + std::to_string(end - i - 1) +
                                           " more of that size, to expert " +
                                           std::to_string(stages[end - 1].first_expert +
                                                          stages[end - 1].experts - 1))));
    i = end;
  }
}

/// Weights that a part reads from scratch files because layers are read several times; else 0.
std::uint64_t scratch_read_bytes(const PreparedJob& job) {
  return job.memory().readings_max > 1 && job.staging().on_disk ? job.staging().needed_bytes : 0;
}

/// How streamed layers meet a part's tokens where these are too many at once, and what it costs.
std::string groups_text(const PreparedJob& job) {
  const MemoryPlan& memory = job.memory();
  const std::string times = std::to_string(memory.readings_max) + " times";
  const std::string bytes = format_bytes(job.staging().needed_bytes);
  const std::string groups =
      "again for each " + format_count(memory.executor_memory.rows_together) + " tokens, up to " +
      times + " a part: " + bytes + " of weights a part ";
  return groups + (job.staging().on_disk ? "from the scratch disk, where they are fetched to once"
                   : job.checkpoint().directory().scheme == "file" ? "from the model's disk"
                                                                   : "over the network");
}

/// What layers weigh, a line for each size: kinds of attention make no difference here.
void print_layers(const PreparedJob& job) {
  std::vector<std::pair<std::string, std::size_t>> sizes;
  for (const ingest::LayerKindSizes& kind : job.layer_sizes().kinds) {
    const std::string size =
        format_bytes(kind.wire_bytes) +
        (kind.experts == 0 ? "" : ", " + std::to_string(kind.experts) + " experts") + "; " +
        format_bytes(kind.decoded_bytes) + " where they are computed";
    const auto same = std::find_if(sizes.begin(), sizes.end(),
                                   [&](const auto& other) { return other.first == size; });
    (same == sizes.end() ? sizes.emplace_back(size, 0) : *same).second += kind.layers.size();
  }
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    print(fact(i == 0 ? "layers" : "", std::to_string(sizes[i].second) + " of " + sizes[i].first));
  }
  if (const MemoryPlan& memory = job.memory(); memory.executor_memory.streamed) {
    const auto& kinds = job.layer_sizes().kinds;
    const auto largest = std::max_element(
        kinds.begin(), kinds.end(),
        [](const auto& a, const auto& b) { return a.decoded_bytes < b.decoded_bytes; });
    print(fact("stages",
               "a layer does not fit, so it comes and goes in up to " +
                   std::to_string(largest->stages.size()) + " stages, " +
                   (memory.readings_max == 1 ? "each once, and all of a part's tokens meet each"
                                             : groups_text(job))));
    print_stages(largest->stages);
  }
}

void print_device(const ingest::DevicePlan& device) {
  const std::string buffers = std::to_string(device.weight_buffers) + " x " +
                              format_bytes(device.weight_bytes / device.weight_buffers);
  print(fact("driver", format_bytes(device.host_overhead_bytes) +
                           " that driver and libraries keep, measured now, come on top as well"));
  print("device memory\n");
  print(fact("weights", format_bytes(device.weight_bytes) + " (" + buffers + ": the next " +
                            (device.staged ? "stage" : "layer") + " comes while one runs)"));
  print(fact("workspace", format_bytes(device.workspace_bytes)));
  print(fact("total", format_bytes(device.weight_bytes + device.workspace_bytes) + " of " +
                          format_bytes(device.limit_bytes)));
  if (device.staged) {
    print(fact("stages", "two layers do not fit, so each comes in " +
                             std::to_string(device.stages.size()) + ", for " +
                             format_count(device.rows_together) + " tokens at a time, up to " +
                             std::to_string(device.uploads_max) + " times a part"));
    print_stages(device.stages);
  }
}

void print_disk(const PreparedJob& job) {
  const ingest::DiskPlan& disk = job.disk();
  print("disk\n");
  print(fact("store", "about " + format_bytes(disk.store_bytes) + " for " +
                          format_bytes(disk.raw_bytes) + " of activations (" +
                          number(disk.expected_ratio, "%.2f") + "x expected)"));
  print(fact("peak", format_bytes(disk.peak_bytes) + ", of it " +
                         format_bytes(disk.scratch_peak_bytes) + " scratch and " +
                         format_bytes(disk.skeleton_bytes) + " model/"));
  print(fact("written to SSD", format_bytes(disk.written_bytes)));
}

void print_staging(const ingest::StagingPlan& staging) {
  if (!staging.on_disk) {
    print(fact("staging", "memory, by ranges: " + staging.reason));
    return;
  }
  print(fact("staging", "disk: " + format_bytes(staging.file_bytes) + " of whole files for " +
                            format_bytes(staging.needed_bytes) + " needed, " +
                            format_bytes(staging.two_layers_bytes) + " at least and at most " +
                            format_bytes(staging.limit_bytes) + " at a time; " + staging.reason));
  print(fact("", (staging.is_cache ? "kept in " : "until the job ends in ") + staging.directory));
}

void print_skeleton(const PreparedJob& job) {
  if (!job.options().skeleton) {
    return;
  }
  print(fact("skeleton",
             job.skeleton_fetch_bytes() == 0
                 ? "is there"
                 : format_bytes(job.skeleton_fetch_bytes()) +
                       " of that once, for embedding, final norm and head in OUT/model; config and "
                       "tokenizer on top"));
}

void print_time(const PreparedJob& job, double flops_per_second) {
  const auto fetch = static_cast<double>(job.fetch_bytes());
  const double compute = job.flops() / flops_per_second;
  const double slow = fetch / kSlowNetwork;
  const double fast = fetch / kFastNetwork;
  const double disk =
      static_cast<double>(job.disk().written_bytes + job.parts().size() * scratch_read_bytes(job)) /
      kDisk;
  // Both directions at the same time.
  const double bus_bytes = job.device_plan()
                               ? static_cast<double>(std::max(job.device_plan()->upload_bytes,
                                                              job.device_plan()->download_bytes))
                               : 0;
  const double bus = bus_bytes / kSlowBus;
  const auto regime = [&](double network) {
    const double slowest = std::max({network, compute, disk, bus});
    return format_duration(seconds(slowest)) + ", set by the " +
           (slowest == compute   ? (job.device_plan() ? "GPU" : "CPU")
            : slowest == network ? "network"
            : slowest == disk    ? "disk"
                                 : "bus");
  };
  print("time\n");
  print(fact("compute",
             format_duration(seconds(compute)) + " at " + number(flops_per_second / 1e9, "%.0f") +
                 " GFLOP/s (measured now, " + job.device_kind() +
                 (job.device_plan() ? ")" : ", " + std::to_string(job.threads()) + " threads)")));
  print(fact("network", format_duration(seconds(slow)) + " at 1 Gbit/s, " +
                            format_duration(seconds(fast)) + " at 10 Gbit/s"));
  print(fact("disk", format_duration(seconds(disk)) + " at 1 GB/s"));
  if (const auto& device = job.device_plan()) {
    print(fact("bus", format_bytes(device->upload_bytes) + " up, " +
                          format_bytes(device->download_bytes) +
                          " down: " + format_duration(seconds(bus)) + " at 12 GB/s, " +
                          format_duration(seconds(bus_bytes / kFastBus)) + " at 24 GB/s"));
  }
  const auto tokens = static_cast<double>(job.tokens().tokens());
  const std::uint64_t layer_bytes = job.layer_sizes().wire_bytes;
  const auto enough = [&](double link) {
    return format_count(
        ingest::break_even_tokens(layer_bytes, link, job.flops() / tokens, flops_per_second));
  };
  print(fact("tokens a part", "from " + enough(kSlowNetwork) +
                                  " on arithmetic takes longer than 1 Gbit/s, from " +
                                  enough(kFastNetwork) + " than 10 Gbit/s"));
  if (const auto& device = job.device_plan()) {
    // Stages go up again for each group of rows, whole layers once a part.
    print(fact(device->staged ? "tokens a stage" : "",
               "from " + enough(kSlowBus) + " on it takes longer than a bus of 12 GB/s, from " +
                   enough(kFastBus) + " than 24 GB/s"));
  }
  print(fact("at 1 Gbit/s", regime(slow)));
  print(fact("at 10 Gbit/s", regime(fast)));
}

/// transformers takes the longest sample of a batch; here each counts for itself.
std::string rope_text(const weightmap::ModelConfig& config) {
  std::string text = config.rope_type;
  for (const gpu_exec::LayerSpec& layer : config.spec.layers) {
    const std::uint32_t limit = layer.attention.rope.short_rows_max;
    if (limit != 0) {
      return text + ": other angles for samples of more than " + format_count(limit) +
             " tokens, each by its own length";
    }
  }
  return text;
}

/// Sizes come before the refusal of a model that can be read and not run.
Error explain(const Error& refusal, const Options& options, const std::stop_token& stop) {
  if (refusal.code() != ErrorCode::bad_input) {
    return refusal;
  }
  const auto unsupported =
      ingest::measure_unsupported(options.job, ingest::JobEnvironment::real(), stop);
  if (!unsupported || !*unsupported) {
    return refusal;
  }
  print_sizes(**unsupported, options.json);
  return (*unsupported)->why;
}

}  // namespace

Result<int> run_plan(const Options& options, const std::stop_token& stop) {
  const auto prepared = PreparedJob::create(options.job, ingest::JobEnvironment::real(), stop);
  if (!prepared) {
    return explain(prepared.error(), options, stop);
  }
  const std::unique_ptr<PreparedJob>& job = *prepared;
  LIB_TRY(const double flops_per_second, job->measure_flops());
  if (options.json) {
    print_event("plan", plan_to_json(*job, flops_per_second));
    return kExitDone;
  }
  for (const std::string& text : job->warnings()) {
    print_error("warning: " + text);
  }
  const auto& checkpoint = job->checkpoint();
  print(checkpoint.directory().display() + "\n");
  print(fact("model", checkpoint.config().model_type + ", " +
                          std::to_string(checkpoint.layer_count()) + " layers, hidden size " +
                          std::to_string(checkpoint.spec().hidden_size) + ", " +
                          format_bytes(checkpoint.weight_bytes()) + " of weights in " +
                          std::to_string(checkpoint.files().size()) + " files"));
  print_layers(*job);
  print(fact("tokens", format_count(job->tokens().tokens()) + " in " +
                           format_count(job->tokens().samples()) + " samples, the longest " +
                           format_count(job->tokens().longest_sample()) +
                           (job->tokens().truncated_samples > 0
                                ? ", " + format_count(job->tokens().truncated_samples) + " cut"
                                : "")));
  print(fact("rope", rope_text(checkpoint.config())));
  print(fact("parts", std::to_string(job->parts().size())));
  print(fact("arithmetic",
             std::string(gpu_exec::dtype_name(job->dtype())) + " on " + job->device_kind()));
  print(fact("to fetch", format_bytes(job->part_fetch_bytes()) + " per part, " +
                             format_bytes(job->fetch_bytes()) + " in all"));
  print_skeleton(*job);
  print_staging(job->staging());
  print_captures(*job);
  print_memory(job->memory());
  if (job->device_plan()) {
    print_device(*job->device_plan());
  }
  print_disk(*job);
  print_time(*job, flops_per_second);
  return kExitDone;
}

}  // namespace librarian::cli
