#pragma once
/// The teacher's skeleton in DIR/model/: config.json, the tokenizer's files, and embedding, final
/// norm and head as a small checkpoint in the hub's layout. Trainers of drafts load it.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/file_system.h"
#include "ingest/known_weights.h"
#include "weightmap/checkpoint.h"
#include "weightmap/remote/fetcher.h"

namespace librarian::ingest {

/// Size of the model.safetensors that write_skeleton() makes.
std::uint64_t skeleton_tensor_file_bytes(const weightmap::Checkpoint& checkpoint);
/// Bytes of tensors in it: what has to be fetched for it.
std::uint64_t skeleton_tensor_bytes(const weightmap::Checkpoint& checkpoint);

struct SkeletonInputs {
  const weightmap::Checkpoint* checkpoint = nullptr;
  std::string store_directory;  ///< Exists, and is the job's.
  std::string identity_digest;
  KnownWeights* known_weights = nullptr;  ///< Tensors of the skeleton are compared and added.
  std::uint64_t memory_bytes = 0;  ///< What may be allocated meanwhile; at least 64 KiB are used.
  std::function<void()> on_begun;  ///< Called before the first byte, if this call writes it.
};

struct SkeletonOutcome {
  bool there = false;               ///< Complete, by this call or before it.
  std::string holder;               ///< Who is writing it, if it is not there.
  std::uint64_t fetched_bytes = 0;  ///< That this call needed to fetch.
  std::string warning;              ///< What it does without, if the origin refused it.
};

/// Writes the skeleton unless it is there or another process is at it. Files get temporary names
/// until they are durable, and librarian.json comes last: whoever dies, the next one begins anew,
/// and removes what it finds. The bytes depend on the model's alone.
/// @error corrupt         What is there is another job's, or lacks files.
/// @error source_changed  config.json or a tensor is not what it was.
/// @error bad_input       A file is too large to be what its name says.
/// @error unavailable | no_space | io | cancelled
Result<SkeletonOutcome> write_skeleton(weightmap::remote::Fetcher& fetcher, FileSystem& files,
                                       Clock& clock, const SkeletonInputs& inputs,
                                       const std::stop_token& stop);

}  // namespace librarian::ingest
