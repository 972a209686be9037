#include "ingest/identity.h"

#include "base/digest.h"

namespace librarian::ingest {
namespace {

template <typename T>
std::string digest_of(const std::vector<T>& values) {
  return xxh3_128(std::as_bytes(std::span(values))).hex();
}

std::string shown(const Json& value) { return value.dump().substr(0, 60); }

}  // namespace

Json make_identity(const IdentityInputs& inputs) {
  const weightmap::Checkpoint& checkpoint = *inputs.checkpoint;
  Json identity = Json::object();
  identity["numerics_version"] = kNumericsVersion;
  identity["model_type"] = checkpoint.config().model_type;
  identity["hidden_size"] = checkpoint.spec().hidden_size;
  identity["layers"] = checkpoint.layer_count();
  identity["config_sha256"] = checkpoint.config_sha256();
  identity["index_sha256"] = checkpoint.index_sha256();
  Json files = Json::array();
  for (const weightmap::WeightFile& file : checkpoint.files()) {
    files.push_back(Json::array({file.name, file.info.size, file.header_sha256}));
  }
  // One digest instead of hundreds of lines; the files' names and sizes are in it.
  identity["weight_files_sha256"] = sha256_hex(files.dump());
  identity["samples"] = inputs.tokens->samples();
  identity["tokens"] = inputs.tokens->tokens();
  identity["input_ids_xxh3"] = digest_of(inputs.tokens->input_ids);
  identity["offsets_xxh3"] = digest_of(inputs.tokens->offsets);
  identity["loss_mask_xxh3"] =
      inputs.tokens->loss_mask ? Json(digest_of(*inputs.tokens->loss_mask)) : Json(nullptr);
  identity["captures"] = inputs.captures->canonical();
  identity["dtype"] = gpu_exec::dtype_name(inputs.dtype);
  identity["codec"] = inputs.codec == activation_store::Codec::zstd ? "zstd" : "none";
  identity["chunk_tokens"] = inputs.chunk_tokens;
  identity["shard_tokens"] = inputs.shard_tokens;
  Json parts = Json::array();
  for (const activation_store::PartRange& part : *inputs.parts) {
    parts.push_back(Json::array({part.first_sample, part.samples, part.tokens}));
  }
  identity["partition_sha256"] = sha256_hex(parts.dump());
  return identity;
}

std::string identity_digest(const Json& identity) { return sha256_hex(identity.dump()); }

std::vector<std::string> identity_differences(const Json& wanted, const Json& existing) {
  std::vector<std::string> differences;
  for (const auto& [key, value] : wanted.items()) {
    const auto found = existing.find(key);
    if (found == existing.end()) {
      differences.push_back(key);
    } else if (*found != value) {
      differences.push_back(key + " (" + shown(value) + ", there: " + shown(*found) + ")");
    }
  }
  for (const auto& [key, value] : existing.items()) {
    if (!wanted.contains(key)) {
      differences.push_back(key);
    }
  }
  return differences;
}

}  // namespace librarian::ingest
