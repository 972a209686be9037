// How what a part computed becomes durable: layer by layer, and in the end as a whole.
#include <algorithm>
#include <utility>

#include "activation_store/blosc_chunk.h"
#include "base/digest.h"
#include "ingest/part_work.h"
#include "ingest/store_directory.h"

namespace librarian::ingest {

using activation_store::ArrayRecord;
using activation_store::FileRecord;

Result<void> PartRun::commit_now(LayerWork& work, const std::stop_token& stop) {
  LIB_TRY_VOID(context_.known_weights.check(work.weights));
  LayerRecord record;
  record.layer = work.layer;
  record.weights = work.weights;
  record.state = work.place;
  record.verified = weightmap::verification_name(context_.weight_source.verification(work.layer));
  LayerDone event;
  for (CaptureSink& output : work.outputs) {
    LIB_TRY(std::vector<ArrayRecord> arrays, output.finish(stop));
    for (ArrayRecord& array : arrays) {
      event.stored_bytes += array.stored_bytes;
      event.raw_bytes += array.raw_bytes;
      record.arrays.push_back(std::move(array));
    }
  }
  LIB_TRY_VOID(lock_->check_still_held());
  for (CaptureSink& output : work.outputs) {
    LIB_TRY_VOID(output.publish());
  }
  // A source is known from its first committed layer on: one that was refused must leave no trace.
  if (std::find(progress_.sources.begin(), progress_.sources.end(), context_.source) ==
      progress_.sources.end()) {
    progress_.sources.push_back(context_.source);
    LIB_TRY_VOID(journal_->append(source_record_text(context_.source)));
  }
  LIB_TRY_VOID(journal_->append(layer_record_text(record)));
  // Only now: until the record is durable, a restart needs the state before this layer.
  if (record.state.kind != StatePlace::Kind::none) {
    LIB_TRY_VOID(state_->drop_old_files(record.layer, record.state));
  }
  // What a restart would compute again it would also read again.
  not_saved_.push_back(work.layer);
  if (record.state.kind != StatePlace::Kind::none || work.layer == last_layer_) {
    for (const std::int32_t layer : std::exchange(not_saved_, {})) {
      context_.weight_source.layer_is_durable(layer, stop);
    }
  }
  progress_.layers.push_back(std::move(record));
  event.part = part_;
  event.layer = work.layer;
  event.last_layer = last_layer_;
  event.tokens = range_.tokens;
  event.fetched_bytes = work.weight_bytes;
  event.times = work.times;
  context_.observer.layer_done(event);
  return {};
}

Result<FileRecord> PartRun::write_weights_file() {
  WeightDigests digests;
  for (const LayerRecord& layer : progress_.layers) {
    digests.insert(layer.weights.begin(), layer.weights.end());
  }
  const std::string text = weights_file_text(digests);
  LIB_TRY_VOID(replace_file(context_.files, directory_ + "/" + kWeightsFileName, text));
  return FileRecord{kWeightsFileName, text.size(), crc32c(std::as_bytes(std::span(text)))};
}

/// The weakest of what is known of its layers.
const char* PartRun::verified() const {
  const auto any_is = [&](const char* how) {
    return std::any_of(progress_.layers.begin(), progress_.layers.end(),
                       [&](const LayerRecord& layer) { return layer.verified == how; });
  };
  // Journals of before say only where layers came from.
  const bool unsaid = any_is("");
  const bool local = std::any_of(
      progress_.sources.begin(), progress_.sources.end(),
      [](const SourceRecord& source) { return source.uri.find("://") == std::string::npos; });
  if (any_is("none") || (unsaid && local)) {
    return "none";
  }
  return any_is("stream") || unsaid ? "stream" : "sha256";
}

Result<void> PartRun::publish(const std::stop_token& stop) {
  activation_store::PartFile part;
  part.range = range_;
  part.hidden_size = context_.checkpoint.spec().hidden_size;
  part.captures = context_.captures.requested;
  part.aliases = context_.captures.aliases;
  part.groups = array_groups(context_.captures);
  part.device_kind = context_.device_kind;
  part.products = context_.products;
  part.zstd_version = activation_store::zstd_version();
  part.verified = verified();
  const auto add = [&](const ArrayRecord& array) {
    part.files.insert(part.files.end(), array.files.begin(), array.files.end());
    part.arrays.push_back(array);
    part.arrays.back().files.clear();
  };
  std::for_each(progress_.tokens.begin(), progress_.tokens.end(), add);
  for (const LayerRecord& layer : progress_.layers) {
    std::for_each(layer.arrays.begin(), layer.arrays.end(), add);
  }
  LIB_TRY(const FileRecord weights, write_weights_file());
  part.files.push_back(weights);
  {
    // Two processes with two models may work on one store: whoever publishes second sees it here.
    LIB_TRY(const std::unique_ptr<DirectoryLock> store_lock,
            DirectoryLock::acquire(context_.files, context_.clock, context_.store_directory, stop));
    LIB_TRY_VOID(context_.known_weights.read_published(context_.files, context_.store_directory,
                                                       context_.part_count));
    LIB_TRY_VOID(lock_->check_still_held());
    LIB_TRY_VOID(replace_file(context_.files, directory_ + "/zarr.json",
                              activation_store::part_file_text(part)));
  }
  journal_.reset();
  return clean_finished_part(context_.files, directory_, context_.scratch_root, part_, *lock_);
}

}  // namespace librarian::ingest
