#pragma once
/// What makes two runs the same job: everything that decides the bytes, and nothing else.

#include <cstdint>
#include <string>
#include <vector>

#include "activation_store/store_files.h"
#include "activation_store/types.h"
#include "base/json.h"
#include "gpu_exec/model_spec.h"
#include "ingest/capture_list.h"
#include "ingest/token_file.h"
#include "weightmap/checkpoint.h"

namespace librarian::ingest {

/// Raised whenever the same inputs would give other bits.
inline constexpr int kNumericsVersion = 2;

struct IdentityInputs {
  const weightmap::Checkpoint* checkpoint = nullptr;
  const TokenData* tokens = nullptr;
  const CaptureList* captures = nullptr;
  gpu_exec::DType dtype{};
  activation_store::Codec codec{};
  std::uint64_t chunk_tokens = 0;
  std::uint64_t shard_tokens = 0;
  const std::vector<activation_store::PartRange>* parts = nullptr;
};

/// Canonical document; equal documents mean equal array data on one kind of device.
Json make_identity(const IdentityInputs& inputs);
/// SHA-256 of the document's canonical text, in hex.
std::string identity_digest(const Json& identity);
/// Names of the fields in which two identities differ, e.g. "dtype (bf16, was f32)".
std::vector<std::string> identity_differences(const Json& wanted, const Json& existing);

}  // namespace librarian::ingest
