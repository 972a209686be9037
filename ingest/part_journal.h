#pragma once
/// What a part's journal says: which layers are finished, what they left, where their weights came
/// from. Presence of a file means nothing, the journal does.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "activation_store/types.h"
#include "base/error.h"
#include "base/file_system.h"
#include "base/journal.h"
#include "ingest/residual_state.h"

namespace librarian::ingest {

/// First record: whose journal this is.
struct PartHeader {
  std::string identity_digest;
  std::uint64_t part = 0;
  std::string device_kind;
};

/// A place that weights of committed layers came from, with what identified its bytes then.
struct SourceRecord {
  struct FileValidator {
    std::string validator;
    bool strong = false;
    bool operator==(const FileValidator&) const = default;
  };
  std::string uri;
  std::map<std::string, FileValidator> files;
  bool operator==(const SourceRecord&) const = default;
};

/// A committed layer: -1 the embedding, L what follows the last.
struct LayerRecord {
  std::int32_t layer = 0;
  std::vector<activation_store::ArrayRecord> arrays;
  std::map<std::string, std::string> weights;  ///< Tensor name -> XXH3-128 in hex.
  StatePlace state;
  /// How its weights were checked: none, stream or sha256; empty: a journal that does not say.
  std::string verified;
};

/// Everything in a journal that is still true.
struct PartProgress {
  PartHeader header;
  std::vector<SourceRecord> sources;
  std::vector<activation_store::ArrayRecord> tokens;  ///< Empty: not written yet.
  /// Digests of tensors that layers were computed with which no longer count.
  std::map<std::string, std::string> seen_weights;
  std::vector<LayerRecord> layers;  ///< In order, without gaps.
};

/// @error corrupt | not_found | io
Result<PartProgress> read_part_journal(FileSystem& files, const std::string& part_directory);

/// The records of a journal that says exactly `progress`, in order.
std::vector<std::string> journal_records(const PartProgress& progress);
std::string source_record_text(const SourceRecord& source);
std::string tokens_record_text(const std::vector<activation_store::ArrayRecord>& arrays);
std::string layer_record_text(const LayerRecord& layer);

/// How many of the layer records are finished: up to the last one that names durable state, or all
/// if the last record is that of `last_layer`.
std::size_t finished_layers(const PartProgress& progress, std::int32_t last_layer);

inline constexpr const char* kJournalName = ".journal";

}  // namespace librarian::ingest
