// The first half of a part's life: what an earlier process left, and what of it still counts.
#include <algorithm>
#include <set>

#include "base/log.h"
#include "base/random.h"
#include "ingest/kept_rows.h"
#include "ingest/part_run.h"

namespace librarian::ingest {
namespace {

using activation_store::ArrayRecord;

constexpr const char* kTokensName = "tokens";

}  // namespace

PartRun::PartRun(const PartContext& context, std::uint64_t part,
                 const activation_store::PartRange& range, std::unique_ptr<DirectoryLock> lock)
    : context_(context),
      part_(part),
      range_(range),
      lock_(std::move(lock)),
      last_layer_(context.captures.last_layer()),
      directory_(context.store_directory + "/" + activation_store::part_directory_name(part)),
      scratch_(context.scratch_root + "/" + activation_store::part_directory_name(part)),
      nonce_(random_hex(8)) {
  const auto first =
      context.tokens.offsets.begin() + static_cast<std::ptrdiff_t>(range.first_sample);
  for (std::uint64_t i = 0; i <= range.samples; ++i) {
    offsets_.push_back(*(first + static_cast<std::ptrdiff_t>(i)) - *first);
  }
  blocks_ = plan_blocks(offsets_, context.block_tokens);
  for (const auto& [name, positions] : positions_of(context.captures)) {
    kept_rows_[name] = kept_rows(context.tokens, range, positions);
  }
}

Result<std::unique_ptr<PartRun>> PartRun::open(const PartContext& context, std::uint64_t part,
                                               const activation_store::PartRange& range,
                                               std::unique_ptr<DirectoryLock> lock) {
  std::unique_ptr<PartRun> run(new PartRun(context, part, range, std::move(lock)));
  LIB_TRY_VOID(make_private_directories(context.files, run->scratch_));
  LIB_TRY_VOID(run->recover());
  return run;
}

std::int32_t PartRun::first_layer() const {
  return static_cast<std::int32_t>(progress_.layers.size()) - 1;
}

Result<void> PartRun::recover() {
  FileSystem& files = context_.files;
  LIB_TRY(const std::vector<std::string> names, files.list(directory_));
  fresh_ = std::find(names.begin(), names.end(), kJournalName) == names.end();
  if (fresh_) {
    for (const std::string& name : names) {
      if (activation_store::is_array_name(name) || name == kTokensName) {
        return Error(ErrorCode::corrupt, directory_ + "/" + name +
                                             ": an array without a journal, so nobody knows "
                                             "whether it is whole; remove " +
                                             directory_ + " to have the part computed again");
      }
    }
    progress_.header = {context_.identity_digest, part_, context_.device_kind};
  } else {
    LIB_TRY_VOID(recover_from_journal());
  }
  LIB_TRY_VOID(start_journal());
  LIB_TRY_VOID(cut_unfinished());
  return write_tokens();
}

Result<void> PartRun::recover_from_journal() {
  LIB_TRY(progress_, read_part_journal(context_.files, directory_));
  if (progress_.header.identity_digest != context_.identity_digest ||
      progress_.header.part != part_) {
    return Error(ErrorCode::conflict,
                 directory_ + "/" + kJournalName + ": belongs to another job or part");
  }
  if (progress_.header.device_kind != context_.device_kind) {
    begin_again("it was begun on " + progress_.header.device_kind + " and this is " +
                context_.device_kind + ": all of its rows must be computed alike");
    progress_.header.device_kind = context_.device_kind;
  }
  for (const LayerRecord& layer : progress_.layers) {
    if (const auto tensor = context_.known_weights.contradiction(layer.weights)) {
      begin_again("its tensor '" + *tensor +
                  "' is not the one that other parts of this store have");
      progress_.seen_weights.clear();
      progress_.sources.clear();
      break;
    }
  }
  LIB_TRY_VOID(check_source());
  std::size_t finished = finished_layers(progress_, last_layer_);
  // The embedding's only tensor is the whole table: computing it again costs what a check would.
  if (source_is_new_ && finished == 1 && last_layer_ >= 0) {
    finished = 0;
  }
  forget_layers(finished);
  std::vector<const ArrayRecord*> arrays;
  for (const ArrayRecord& array : progress_.tokens) {
    arrays.push_back(&array);
  }
  for (const LayerRecord& layer : progress_.layers) {
    for (const ArrayRecord& array : layer.arrays) {
      arrays.push_back(&array);
    }
  }
  for (const ArrayRecord* array : arrays) {
    for (const activation_store::FileRecord& file : array->files) {
      const std::string path = directory_ + "/" + file.path;
      const auto info = context_.files.info(path);
      if (!info || info->kind != FileKind::file || info->size != file.size) {
        return Error(ErrorCode::corrupt, path + ": missing or not the " +
                                             std::to_string(file.size) +
                                             " bytes that were committed; remove " + directory_ +
                                             " to have the part computed again");
      }
    }
  }
  return {};
}

void PartRun::begin_again(const std::string& reason) {
  context_.observer.warning("part " + std::to_string(part_) + " begins again: " + reason);
  forget_layers(0);
}

/// Drops layers behind the first `kept`; what their weights were is still compared later.
void PartRun::forget_layers(std::size_t kept) {
  for (std::size_t i = kept; i < progress_.layers.size(); ++i) {
    progress_.seen_weights.insert(progress_.layers[i].weights.begin(),
                                  progress_.layers[i].weights.end());
  }
  progress_.layers.resize(kept);
}

Result<void> PartRun::check_source() {
  bool known = false;
  for (const SourceRecord& before : progress_.sources) {
    if (before.uri != context_.source.uri) {
      continue;
    }
    for (const auto& [name, now] : context_.source.files) {
      const auto then = before.files.find(name);
      if (then == before.files.end() || !(then->second == now)) {
        return Error(ErrorCode::source_changed,
                     context_.source.uri + name +
                         ": is no longer the file this job began with (its validator was " +
                         (then == before.files.end() ? "none" : then->second.validator) +
                         " and is " + now.validator +
                         "); restore it, or start a new job in another directory");
      }
    }
    known = std::all_of(before.files.begin(), before.files.end(),
                        [](const auto& entry) { return entry.second.strong; });
  }
  source_is_new_ = !known;
  return {};
}

/// Writes the journal anew with what still counts, before anything that it no longer names goes.
Result<void> PartRun::start_journal() {
  LIB_TRY(journal_, JournalWriter::create(context_.files, directory_ + "/" + kJournalName,
                                          journal_records(progress_)));
  return {};
}

/// Deletes what the journal does not name: arrays, state files and temporaries of a layer that a
/// crash caught half-way. Names that are not ours stay.
Result<void> PartRun::cut_unfinished() {
  FileSystem& files = context_.files;
  std::set<std::string> committed;
  for (const LayerRecord& layer : progress_.layers) {
    for (const ArrayRecord& array : layer.arrays) {
      committed.insert(array.name);
    }
  }
  LIB_TRY_VOID(remove_temporaries(files, directory_, 0));
  LIB_TRY_VOID(remove_temporaries(files, directory_ + "/" + kTokensName, 2));
  LIB_TRY(const std::vector<std::string> names, files.list(directory_));
  for (const std::string& name : names) {
    if (activation_store::is_array_name(name) && !committed.contains(name)) {
      LIB_TRY_VOID(activation_store::remove_array(files, directory_, name));
    }
  }
  const StatePlace place = progress_.layers.empty() ? StatePlace{} : progress_.layers.back().state;
  LIB_TRY(const std::vector<std::string> states, files.list(scratch_));
  for (const std::string& name : states) {
    const bool kept = place.kind == StatePlace::Kind::file && place.name == name;
    if (ResidualState::is_file_name(name) && !kept) {
      LIB_TRY_VOID(files.remove_file(scratch_ + "/" + name));
    }
  }
  return {};
}

Result<void> PartRun::write_tokens() {
  if (!progress_.tokens.empty()) {
    return {};
  }
  const TokenData& all = context_.tokens;
  const auto begin = static_cast<std::ptrdiff_t>(all.offsets[range_.first_sample]);
  const auto end = begin + static_cast<std::ptrdiff_t>(range_.tokens);
  activation_store::PartTokens tokens;
  tokens.input_ids.assign(all.input_ids.begin() + begin, all.input_ids.begin() + end);
  tokens.offsets = offsets_;
  if (all.loss_mask) {
    tokens.loss_mask.emplace(all.loss_mask->begin() + begin, all.loss_mask->begin() + end);
  }
  tokens.rows = kept_rows_;
  for (std::uint64_t i = 0; i < range_.samples; ++i) {
    tokens.sample_index.push_back(static_cast<std::int64_t>(range_.first_sample + i));
  }
  LIB_TRY(progress_.tokens,
          activation_store::write_part_tokens(context_.files, directory_, tokens, nonce_));
  return journal_->append(tokens_record_text(progress_.tokens));
}

/// Where validators cannot tell that a source is the one that finished layers came from, one small
/// tensor of each can.
Result<void> PartRun::check_moved_source(const PartTools& tools, const std::stop_token& stop) {
  LIB_TRY_VOID(context_.known_weights.check(progress_.seen_weights));
  for (const LayerRecord& record : progress_.layers) {
    LIB_TRY_VOID(context_.known_weights.check(record.weights));
  }
  if (!source_is_new_) {
    return {};
  }
  for (const LayerRecord& record : progress_.layers) {
    const weightmap::LayerPlan& plan = context_.checkpoint.layer(record.layer);
    if (record.layer == weightmap::kEmbeddingLayer) {
      continue;
    }
    // Of those that were needed: not every expert may have been.
    const weightmap::WeightTensor* smallest = nullptr;
    for (const weightmap::WeightTensor& tensor : plan.tensors) {
      if (record.weights.contains(tensor.name) &&
          (smallest == nullptr || tensor.bytes.size() < smallest->bytes.size())) {
        smallest = &tensor;
      }
    }
    if (smallest == nullptr) {
      smallest = &plan.tensors.front();  // It has none of the names that are known.
    }
    std::vector<std::byte> bytes(smallest->bytes.size());
    const weightmap::WeightFile& file = context_.checkpoint.files()[smallest->file];
    LIB_TRY_VOID(tools.fetcher.fetch({file.object, {{smallest->bytes, bytes.data()}}}, stop));
    const auto known = record.weights.find(smallest->name);
    if (known == record.weights.end() || known->second != xxh3_128(bytes).hex()) {
      return Error(ErrorCode::source_changed,
                   context_.source.uri + file.name + ": tensor '" + smallest->name +
                       "' is not the one that finished layers of " + directory_ +
                       " were computed with; give the original model, or start a new job in "
                       "another directory");
    }
  }
  return {};
}

Result<void> PartRun::restore_state() {
  ResidualStateOptions options;
  options.rows = range_.tokens;
  options.row_bytes =
      context_.checkpoint.spec().hidden_size * gpu_exec::dtype_bytes(context_.dtype);
  options.window_rows = context_.chunk_tokens;
  options.in_memory = context_.state_in_memory;
  options.part_directory = directory_;
  options.scratch_directory = scratch_;
  LIB_TRY(state_, ResidualState::create(context_.files, options, context_.block_tokens));
  if (!progress_.layers.empty() && first_layer() <= last_layer_) {
    LIB_TRY_VOID(state_->restore(progress_.layers.back().state));
  }
  return {};
}

}  // namespace librarian::ingest
