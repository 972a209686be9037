#include "ingest/skeleton.h"

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "activation_store/skeleton_file.h"
#include "activation_store/store_names.h"
#include "base/json.h"
#include "base/random.h"
#include "base/units.h"
#include "ingest/directory_lock.h"
#include "weightmap/remote/fetch_in_order.h"
#include "weightmap/safetensors_header.h"

namespace librarian::ingest {
namespace {

using activation_store::SkeletonEntry;
using activation_store::SkeletonFile;
using weightmap::StoredTensor;
using weightmap::remote::ByteRange;
using weightmap::remote::Fetcher;
using weightmap::remote::ObjectId;

constexpr const char* kConfigName = "config.json";
constexpr const char* kTensorsName = "model.safetensors";
/// Taken as they are where the model has them.
constexpr std::array kOptionalNames{"added_tokens.json",
                                    "chat_template.jinja",
                                    "chat_template.json",
                                    "generation_config.json",
                                    "merges.txt",
                                    "special_tokens_map.json",
                                    "tokenizer.json",
                                    "tokenizer.model",
                                    "tokenizer_config.json",
                                    "vocab.json"};
constexpr std::uint64_t kSmallFileBytesMax = 64 * kMiB;
constexpr std::uint64_t kWindowBytesMin = 64 * kKiB;
constexpr std::uint64_t kWindowBytesMax = 64 * kMiB;
constexpr std::uint64_t kPiecesInFlight = 8;
constexpr std::uint64_t kHeaderAlignment = 8;

/// In the order of the file: wide elements first, so that each tensor is aligned to its own.
std::vector<StoredTensor> file_order(const weightmap::Checkpoint& checkpoint) {
  std::vector<StoredTensor> tensors = checkpoint.skeleton();
  std::stable_sort(tensors.begin(), tensors.end(),
                   [](const StoredTensor& a, const StoredTensor& b) {
                     return weightmap::dtype_bits(a.dtype) > weightmap::dtype_bits(b.dtype);
                   });
  return tensors;
}

/// @source github.com/huggingface/safetensors, README "Format"; "pt" is what transformers asks for.
std::string tensor_file_head(const std::vector<StoredTensor>& tensors) {
  Json header;
  header["__metadata__"] = {{"format", "pt"}};
  std::uint64_t at = 0;
  for (const StoredTensor& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {at, at + tensor.bytes.size()}}};
    at += tensor.bytes.size();
  }
  std::string json = header.dump();
  json.resize((json.size() + kHeaderAlignment - 1) / kHeaderAlignment * kHeaderAlignment, ' ');
  std::string head;
  for (std::uint64_t length = json.size(), i = 0; i < weightmap::kHeaderPrefixBytes; ++i) {
    head += static_cast<char>(length >> (8 * i) & 0xFFU);
  }
  return head + json;
}

/// No more than the largest run of bytes needs.
std::uint64_t window_bytes(const SkeletonInputs& inputs) {
  std::uint64_t largest = kWindowBytesMin;
  for (const StoredTensor& tensor : inputs.checkpoint->skeleton()) {
    largest = std::max(largest, tensor.bytes.size());
  }
  return std::clamp(std::min(inputs.memory_bytes, largest), kWindowBytesMin, kWindowBytesMax);
}

/// A file under its temporary name.
class NewFile {
 public:
  static Result<NewFile> create(FileSystem& files, const std::string& directory,
                                const std::string& name, const std::string& nonce) {
    NewFile file;
    file.path_ = directory + "/" + name;
    file.temporary_ = activation_store::partial_path(file.path_, nonce);
    file.entry_.name = name;
    LIB_TRY(file.file_, files.create(file.temporary_));
    return file;
  }

  Result<void> append(std::span<const std::byte> bytes) {
    LIB_TRY_VOID(file_->append(bytes));
    digest_.update(bytes);
    entry_.size += bytes.size();
    return {};
  }

  /// The name itself lasts only after sync_directory().
  Result<SkeletonEntry> publish(FileSystem& files) {
    LIB_TRY_VOID(file_->sync_data());
    LIB_TRY_VOID(files.rename(temporary_, path_));
    entry_.xxh3 = digest_.digest();
    return entry_;
  }

 private:
  NewFile() = default;

  std::string path_;
  std::string temporary_;
  SkeletonEntry entry_;
  StreamingXxh3 digest_;
  std::unique_ptr<File> file_;
};

/// Whether the store has its skeleton, which must then be the job's, whole, and of its weights.
Result<bool> has_skeleton(FileSystem& files, const SkeletonInputs& inputs) {
  const auto skeleton = activation_store::read_skeleton_file(files, inputs.store_directory);
  if (!skeleton) {
    return skeleton.error().code() == ErrorCode::not_found ? Result<bool>(false) : skeleton.error();
  }
  LIB_TRY_VOID(activation_store::check_skeleton_sizes(files, inputs.store_directory, *skeleton,
                                                      inputs.identity_digest));
  LIB_TRY_VOID(inputs.known_weights->check(skeleton->tensors));
  return true;
}

class Writer {
 public:
  Writer(Fetcher& fetcher, FileSystem& files, Clock& clock, const SkeletonInputs& inputs)
      : fetcher_(fetcher),
        files_(files),
        clock_(clock),
        inputs_(inputs),
        directory_(inputs.store_directory + "/" + activation_store::kSkeletonDirectory),
        nonce_(random_hex(8)),
        window_(window_bytes(inputs)) {}

  /// @param lock  Held for the directory.
  Result<void> run(const DirectoryLock& lock, const std::stop_token& stop) {
    LIB_TRY_VOID(remove_remains());
    LIB_TRY_VOID(take_config(stop));
    for (const char* name : kOptionalNames) {
      LIB_TRY_VOID(take_optional(name, stop));
    }
    LIB_TRY_VOID(take_tensors(stop));
    LIB_TRY_VOID(files_.sync_directory(directory_));
    std::sort(entries_.begin(), entries_.end(),
              [](const SkeletonEntry& a, const SkeletonEntry& b) { return a.name < b.name; });
    LIB_TRY_VOID(inputs_.known_weights->check(tensors_));
    LIB_TRY_VOID(lock.check_still_held());
    return replace_file(
        files_, directory_ + "/" + activation_store::kSkeletonFileName,
        activation_store::skeleton_file_text({inputs_.identity_digest, entries_, tensors_}));
  }

  std::uint64_t fetched_bytes() const { return fetched_bytes_; }
  std::string warning() const {
    return refused_.empty() ? std::string()
                            : directory_ + " does without " + refused_ +
                                  ": the origin does not give it out as a file";
  }

 private:
  /// What a try that died left, whatever it got to.
  Result<void> remove_remains() {
    LIB_TRY_VOID(remove_temporaries(files_, directory_, 0));
    LIB_TRY(const std::vector<std::string> names, files_.list(directory_));
    for (const std::string& name : names) {
      const bool ours =
          name == kConfigName || name == kTensorsName ||
          std::find(kOptionalNames.begin(), kOptionalNames.end(), name) != kOptionalNames.end();
      if (ours) {
        LIB_TRY_VOID(files_.remove_file(directory_ + "/" + name));
      }
    }
    return {};
  }

  Result<void> take_config(const std::stop_token& stop) {
    const weightmap::remote::Uri uri = inputs_.checkpoint->directory().child(kConfigName);
    LIB_TRY(const std::string text,
            weightmap::remote::read_object(fetcher_, uri, kSmallFileBytesMax, stop));
    if (sha256_hex(text) != inputs_.checkpoint->config_sha256()) {
      return Error(
          ErrorCode::source_changed,
          uri.display() + ": has other bytes than when the job began; start the job again");
    }
    fetched_bytes_ += text.size();
    LIB_TRY(NewFile file, NewFile::create(files_, directory_, kConfigName, nonce_));
    LIB_TRY_VOID(file.append(std::as_bytes(std::span(text))));
    return keep(file);
  }

  Result<void> take_optional(const std::string& name, const std::stop_token& stop) {
    const weightmap::remote::Uri uri = inputs_.checkpoint->directory().child(name);
    const auto opened = fetcher_.open(uri, kWindowBytesMin, stop);
    if (!opened) {
      if (opened.error().code() == ErrorCode::not_found) {
        return {};
      }
      // Buckets that nobody may list say "forbidden" of what is not there.
      if (opened.error().code() == ErrorCode::bad_input) {
        refused_ += (refused_.empty() ? "" : ", ") + name;
        return {};
      }
      return opened.error();
    }
    if (opened->info.size > kSmallFileBytesMax) {
      return Error(ErrorCode::bad_input, uri.display() + ": " + format_bytes(opened->info.size) +
                                             " is too large for a tokenizer's file; --skeleton no "
                                             "leaves them out");
    }
    LIB_TRY(NewFile file, NewFile::create(files_, directory_, name, nonce_));
    LIB_TRY_VOID(file.append(std::as_bytes(std::span(opened->head))));
    LIB_TRY_VOID(take_range(
        opened->id, {opened->head.size(), opened->info.size},
        [&](std::span<const std::byte> bytes) { return file.append(bytes); }, stop));
    fetched_bytes_ += opened->head.size();
    return keep(file);
  }

  Result<void> take_tensors(const std::stop_token& stop) {
    const std::vector<StoredTensor> tensors = file_order(*inputs_.checkpoint);
    LIB_TRY(NewFile file, NewFile::create(files_, directory_, kTensorsName, nonce_));
    const std::string head = tensor_file_head(tensors);
    LIB_TRY_VOID(file.append(std::as_bytes(std::span(head))));
    for (const StoredTensor& tensor : tensors) {
      StreamingXxh3 digest;
      LIB_TRY_VOID(take_range(
          inputs_.checkpoint->files()[tensor.file].object, tensor.bytes,
          [&](std::span<const std::byte> bytes) {
            digest.update(bytes);
            return file.append(bytes);
          },
          stop));
      tensors_[tensor.name] = digest.digest().hex();
    }
    return keep(file);
  }

  Result<void> take_range(ObjectId object, ByteRange range,
                          const std::function<Result<void>(std::span<const std::byte>)>& use,
                          const std::stop_token& stop) {
    fetched_bytes_ += range.size();
    return weightmap::remote::fetch_in_order(fetcher_, clock_, object, range, window_,
                                             window_.size() / kPiecesInFlight, use, stop);
  }

  Result<void> keep(NewFile& file) {
    LIB_TRY(SkeletonEntry entry, file.publish(files_));
    entries_.push_back(std::move(entry));
    return {};
  }

  Fetcher& fetcher_;
  FileSystem& files_;
  Clock& clock_;
  const SkeletonInputs& inputs_;
  const std::string directory_;
  const std::string nonce_;
  std::vector<std::byte> window_;
  std::vector<SkeletonEntry> entries_;
  WeightDigests tensors_;
  std::uint64_t fetched_bytes_ = 0;
  std::string refused_;
};

}  // namespace

std::uint64_t skeleton_tensor_bytes(const weightmap::Checkpoint& checkpoint) {
  std::uint64_t bytes = 0;
  for (const StoredTensor& tensor : checkpoint.skeleton()) {
    bytes += tensor.bytes.size();
  }
  return bytes;
}

std::uint64_t skeleton_tensor_file_bytes(const weightmap::Checkpoint& checkpoint) {
  return tensor_file_head(file_order(checkpoint)).size() + skeleton_tensor_bytes(checkpoint);
}

Result<SkeletonOutcome> write_skeleton(Fetcher& fetcher, FileSystem& files, Clock& clock,
                                       const SkeletonInputs& inputs, const std::stop_token& stop) {
  SkeletonOutcome outcome;
  const std::string directory = inputs.store_directory + "/" + activation_store::kSkeletonDirectory;
  LIB_TRY(outcome.there, has_skeleton(files, inputs));
  // A crash right after publication leaves the lock: its owner's last duty is ours then.
  if (outcome.there && !files.info(directory + "/.lock")) {
    return outcome;
  }
  LIB_TRY_VOID(make_directories(files, directory));
  LIB_TRY(DirectoryLock::Outcome taken, DirectoryLock::try_acquire(files, clock, directory));
  if (!taken.lock) {
    outcome.holder = taken.holder;
    return outcome;
  }
  // It may have been finished while we came to the lock.
  LIB_TRY(outcome.there, has_skeleton(files, inputs));
  if (outcome.there) {
    LIB_TRY_VOID(remove_temporaries(files, directory, 0));
  } else {
    if (inputs.on_begun) {
      inputs.on_begun();
    }
    Writer writer(fetcher, files, clock, inputs);
    LIB_TRY_VOID(writer.run(*taken.lock, stop));
    outcome.fetched_bytes = writer.fetched_bytes();
    outcome.warning = writer.warning();
    outcome.there = true;
  }
  LIB_TRY_VOID(taken.lock->remove());
  LIB_TRY_VOID(files.sync_directory(directory));
  return outcome;
}

}  // namespace librarian::ingest
