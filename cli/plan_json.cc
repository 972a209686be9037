#include "cli/plan_json.h"

#include <algorithm>
#include <cstddef>

namespace librarian::cli {
namespace {

using ingest::MemoryPlan;
using ingest::PreparedJob;

Json memory_to_json(const MemoryPlan& memory) {
  return {{"limit_bytes", memory.limit_bytes},
          {"total_bytes", memory.total_bytes},
          {"packed_weight_bytes", memory.packed_weight_bytes},
          {"workspace_bytes", memory.workspace_bytes},
          {"ring_bytes", memory.ring_bytes},
          {"state_bytes", memory.state_bytes},
          {"encode_bytes", memory.encode_bytes},
          {"table_bytes", memory.table_bytes},
          {"logits_bytes", memory.logits_bytes},
          {"head_passes", memory.head_passes},
          {"staging_bytes", memory.staging_bytes},
          {"block_tokens", memory.block_tokens},
          {"state", memory.state_in_memory ? "memory" : "disk"},
          {"whole_layer_prefetch", memory.whole_layer_prefetch},
          {"streamed", memory.executor_memory.streamed},
          {"rows_together",
           memory.executor_memory.streamed ? Json(memory.executor_memory.rows_together) : Json()},
          {"readings_per_part", memory.readings_max}};
}

Json layers_to_json(const ingest::LayerSizes& sizes) {
  Json kinds = Json::array();
  for (const ingest::LayerKindSizes& kind : sizes.kinds) {
    kinds.push_back({{"layers", kind.layers.size()},
                     {"first", kind.layers.front()},
                     {"tensors", kind.tensors},
                     {"wire_bytes", kind.wire_bytes},
                     {"decoded_bytes", kind.decoded_bytes},
                     {"experts", kind.experts},
                     {"stages", kind.stages.size()}});
  }
  return kinds;
}

Json device_to_json(const ingest::DevicePlan& device) {
  Json stages = Json::array();
  for (const gpu_exec::StageSummary& stage : device.stages) {
    stages.push_back({{"what", stage.text}, {"bytes", stage.bytes}});
  }
  return {{"host_overhead_bytes", device.host_overhead_bytes},
          {"limit_bytes", device.limit_bytes},
          {"weight_bytes", device.weight_bytes},
          {"workspace_bytes", device.workspace_bytes},
          {"weight_buffers", device.weight_buffers},
          {"staged", device.staged},
          {"rows_together", device.rows_together},
          {"uploads_max", device.uploads_max},
          {"stages", stages},
          {"upload_bytes", device.upload_bytes},
          {"download_bytes", device.download_bytes}};
}

Json staging_to_json(const ingest::StagingPlan& staging) {
  return {{"on_disk", staging.on_disk},
          {"reason", staging.reason},
          {"directory", staging.on_disk ? Json(staging.directory) : Json()},
          {"is_cache", staging.is_cache},
          {"limit_bytes", staging.limit_bytes},
          {"needed_bytes", staging.needed_bytes},
          {"file_bytes", staging.file_bytes},
          {"two_layers_bytes", staging.two_layers_bytes}};
}

Json stored_to_json(const PreparedJob& job, const std::string& capture) {
  Json stored = Json::array();
  for (const ingest::DiskArray& array : arrays_of(job, capture)) {
    stored.push_back({{"array", array.name},
                      {"rows", array.rows},
                      {"dtype", activation_store::stored_type_name(array.type)},
                      {"raw_bytes", array.rows * array.row_bytes},
                      {"store_bytes", array.store_bytes}});
  }
  return stored;
}

}  // namespace

std::vector<ingest::DiskArray> arrays_of(const PreparedJob& job, const std::string& capture) {
  const auto alias = job.captures().aliases.find(capture);
  const std::string& home = alias == job.captures().aliases.end() ? capture : alias->second;
  std::vector<ingest::DiskArray> arrays;
  for (const ingest::DiskArray& array : job.disk().arrays) {
    if (array.name == home || array.name == activation_store::scales_name(home) ||
        ((capture == ingest::kLogitsTopk || capture.ends_with(".router")) &&
         array.name.starts_with(capture + "."))) {
      arrays.push_back(array);
    }
  }
  return arrays;
}

std::string capture_options_text(const PreparedJob& job, const std::string& capture) {
  const auto& names = job.captures().requested;
  const auto index = std::find(names.begin(), names.end(), capture) - names.begin();
  return job.captures().canonical()[static_cast<std::size_t>(index)].substr(capture.size());
}

Json plan_to_json(const PreparedJob& job, double flops_per_second) {
  const std::int32_t layers = job.checkpoint().layer_count();
  const ingest::CaptureShape shape = ingest::capture_shape(job.checkpoint().spec());
  Json captures = Json::array();
  for (const std::string& name : job.captures().requested) {
    const ingest::CaptureNotations other = ingest::capture_notations(name, shape);
    const auto alias = job.captures().aliases.find(name);
    captures.push_back({{"name", name},
                        {"array", alias == job.captures().aliases.end() ? name : alias->second},
                        {"options", capture_options_text(job, name)},
                        {"stored", stored_to_json(job, name)},
                        {"hf", other.hf},
                        {"vllm", other.vllm},
                        {"transformer_lens", other.transformer_lens}});
  }
  const ingest::DiskPlan& disk = job.disk();
  return {{"model_type", job.checkpoint().config().model_type},
          {"rope_type", job.checkpoint().config().rope_type},
          {"layers", layers},
          {"hidden_size", job.checkpoint().spec().hidden_size},
          {"dtype", gpu_exec::dtype_name(job.dtype())},
          {"device_kind", job.device_kind()},
          {"samples", job.tokens().samples()},
          {"tokens", job.tokens().tokens()},
          {"truncated_samples", job.tokens().truncated_samples},
          {"parts", job.parts().size()},
          {"captures", captures},
          {"fetch_bytes_per_part", job.part_fetch_bytes()},
          {"fetch_bytes", job.fetch_bytes()},
          {"skeleton_fetch_bytes", job.skeleton_fetch_bytes()},
          {"metadata_bytes", job.checkpoint().metadata_bytes()},
          {"flops", job.flops()},
          {"measured_flops_per_second", flops_per_second},
          {"layer_kinds", layers_to_json(job.layer_sizes())},
          {"memory", memory_to_json(job.memory())},
          {"device", job.device_plan() ? device_to_json(*job.device_plan()) : Json()},
          {"disk",
           {{"raw_bytes", disk.raw_bytes},
            {"store_bytes", disk.store_bytes},
            {"expected_ratio", disk.expected_ratio},
            {"scratch_peak_bytes", disk.scratch_peak_bytes},
            {"skeleton_bytes", disk.skeleton_bytes},
            {"peak_bytes", disk.peak_bytes},
            {"written_bytes", disk.written_bytes}}},
          {"staging", staging_to_json(job.staging())},
          {"identity_sha256", job.identity_digest()},
          {"warnings", job.warnings()}};
}

}  // namespace librarian::cli
