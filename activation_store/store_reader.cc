#include "activation_store/store_reader.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <set>

namespace librarian::activation_store {
namespace {

template <typename T>
Result<std::vector<T>> token_values(FileSystem& files, const CompletePart& part, const char* name,
                                    const char* dtype, std::uint64_t length) {
  LIB_TRY(const auto bytes, read_token_array(files, part.directory, name, dtype));
  if (bytes.size() != length * sizeof(T)) {
    return Error(ErrorCode::corrupt, part.directory + "/tokens/" + name +
                                         ": its length is not the one that the part states");
  }
  std::vector<T> values(length);
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

Error unknown_capture(const CompletePart& part, const std::string& capture) {
  std::set<std::string> names(part.file.captures.begin(), part.file.captures.end());
  std::string list;
  for (const std::string& name : names) {
    list += (list.empty() ? "" : ", ") + name;
  }
  return Error(ErrorCode::not_found, part.directory + " has no capture '" + capture + "'; it has " +
                                         (list.empty() ? "none" : list));
}

}  // namespace

class StoreReader::Impl {
 public:
  Impl(FileSystem& files, std::shared_ptr<const JobFile> job)
      : files_(files), job_(std::move(job)) {}

  Result<void> add_part(const std::string& store_directory, std::uint64_t index);

  FileSystem& files_;
  const std::shared_ptr<const JobFile> job_;
  std::vector<CompletePart> parts_;

  std::mutex mutex_;  // guards what follows; entries stay where they are once they exist
  std::map<std::pair<std::uint64_t, std::string>, std::unique_ptr<ArrayReader>> arrays_;
  std::map<std::uint64_t, std::vector<std::int64_t>> offsets_;
  std::map<std::pair<std::uint64_t, std::string>, std::unique_ptr<std::vector<std::int64_t>>>
      kept_rows_;
};

StoreReader::StoreReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
StoreReader::StoreReader(StoreReader&&) noexcept = default;
StoreReader& StoreReader::operator=(StoreReader&&) noexcept = default;
StoreReader::~StoreReader() = default;

Result<void> StoreReader::Impl::add_part(const std::string& store_directory, std::uint64_t index) {
  const std::string directory = store_directory + "/" + part_directory_name(index);
  LIB_TRY(PartFile file, read_part_file(files_, directory));
  if (file.range != job_->parts[index]) {
    return Error(ErrorCode::corrupt,
                 directory + "/zarr.json: these are not the samples that job.json gives to part " +
                     std::to_string(index));
  }
  parts_.push_back({index, directory, std::move(file)});
  return {};
}

Result<StoreReader> StoreReader::open(FileSystem& files, const std::string& store_directory) {
  LIB_TRY(JobFile job, read_job_file(files, store_directory));
  auto impl = std::make_unique<Impl>(files, std::make_shared<const JobFile>(std::move(job)));
  for (std::uint64_t index = 0; index < impl->job_->parts.size(); ++index) {
    auto added = impl->add_part(store_directory, index);
    if (!added && added.error().code() != ErrorCode::not_found) {  // else not complete yet
      return std::move(added).error();
    }
  }
  return StoreReader(std::move(impl));
}

Result<StoreReader> StoreReader::open_part(FileSystem& files, const std::string& store_directory,
                                           std::shared_ptr<const JobFile> job,
                                           std::uint64_t index) {
  LIB_CHECK(index < job->parts.size());
  auto impl = std::make_unique<Impl>(files, std::move(job));
  LIB_TRY_VOID(impl->add_part(store_directory, index));
  return StoreReader(std::move(impl));
}

const JobFile& StoreReader::job() const { return *impl_->job_; }
const std::vector<CompletePart>& StoreReader::parts() const { return impl_->parts_; }
std::uint64_t StoreReader::parts_total() const { return impl_->job_->parts.size(); }

std::uint64_t StoreReader::samples_total() const {
  const auto& parts = impl_->job_->parts;
  return parts.empty() ? 0 : parts.back().first_sample + parts.back().samples;
}

bool StoreReader::numerics_uniform() const {
  return std::all_of(parts().begin(), parts().end(), [&](const CompletePart& part) {
    return part.file.device_kind == parts().front().file.device_kind;
  });
}

std::vector<std::string> StoreReader::captures() const {
  std::set<std::string> names;
  if (!parts().empty()) {
    const PartFile& file = parts().front().file;
    names.insert(file.captures.begin(), file.captures.end());
    for (const ArrayRecord& array : file.arrays) {
      if (!array.is_tokens()) {
        names.insert(array.name);
      }
    }
    for (const auto& [alias, target] : file.aliases) {
      names.insert(alias);
    }
  }
  return {names.begin(), names.end()};
}

Result<std::string> StoreReader::resolve(const CompletePart& part,
                                         const std::string& capture) const {
  const auto alias = part.file.aliases.find(capture);
  const std::string& name = alias == part.file.aliases.end() ? capture : alias->second;
  const bool known = std::any_of(
      part.file.arrays.begin(), part.file.arrays.end(),
      [&](const ArrayRecord& array) { return array.name == name && !array.is_tokens(); });
  const auto group = part.file.groups.find(capture);
  if (group != part.file.groups.end()) {
    std::string list;
    for (const auto& [member, array] : group->second) {
      list += (list.empty() ? "" : ", ") + array;
    }
    return Error(ErrorCode::not_found, part.directory + ": '" + capture +
                                           "' is more than one array; ask for one of " + list);
  }
  if (!known) {
    return unknown_capture(part, capture);
  }
  return name;
}

Result<SampleRange> StoreReader::locate(std::uint64_t sample) const {
  if (sample >= samples_total()) {
    return Error(ErrorCode::not_found, "no sample " + std::to_string(sample) + "; the store has " +
                                           std::to_string(samples_total()));
  }
  const auto after = std::upper_bound(parts().begin(), parts().end(), sample,
                                      [](std::uint64_t wanted, const CompletePart& part) {
                                        return wanted < part.file.range.first_sample;
                                      });
  if (after == parts().begin() ||
      sample - (after - 1)->file.range.first_sample >= (after - 1)->file.range.samples) {
    return Error(ErrorCode::not_found,
                 "sample " + std::to_string(sample) + " belongs to a part that is not complete");
  }
  const auto part = static_cast<std::uint64_t>(after - 1 - parts().begin());
  LIB_TRY(const std::vector<std::int64_t>* const rows, offsets(part));
  const std::uint64_t local = sample - parts()[part].file.range.first_sample;
  return SampleRange{part, static_cast<std::uint64_t>((*rows)[local]),
                     static_cast<std::uint64_t>((*rows)[local + 1])};
}

Result<SampleRows> StoreReader::sample(const std::string& capture, std::uint64_t sample) const {
  LIB_TRY(const SampleRange range, locate(sample));
  LIB_TRY(const std::string name, resolve(parts()[range.part], capture));
  LIB_TRY(const ArrayReader* const reader, array(range.part, name));
  const ArrayLayout& layout = reader->layout();
  SampleRows rows;
  rows.width = layout.width;
  rows.type = layout.type;
  rows.is_vector = layout.is_vector;
  std::uint64_t begin = range.begin;
  std::uint64_t end = range.end;
  if (!reader->attributes().rows.empty()) {
    LIB_TRY(const std::vector<std::int64_t>* const kept,
            kept_rows(range.part, reader->attributes().rows));
    const auto first = std::lower_bound(kept->begin(), kept->end(), begin);
    const auto last = std::lower_bound(first, kept->end(), end);
    rows.positions.emplace(first, last);
    for (std::int64_t& row : *rows.positions) {
      row -= static_cast<std::int64_t>(range.begin);
    }
    begin = static_cast<std::uint64_t>(first - kept->begin());
    end = static_cast<std::uint64_t>(last - kept->begin());
  }
  rows.tokens = end - begin;
  rows.bytes.resize(rows.tokens * row_bytes(layout));
  LIB_TRY_VOID(reader->read_rows(begin, end, rows.bytes));
  return rows;
}

Result<std::vector<std::int32_t>> StoreReader::sample_tokens(std::uint64_t sample) const {
  LIB_TRY(const SampleRange range, locate(sample));
  return input_ids(range.part, range.begin, range.end);
}

Result<const ArrayReader*> StoreReader::array(std::uint64_t part, const std::string& name) const {
  const std::lock_guard<std::mutex> guard(impl_->mutex_);
  auto& slot = impl_->arrays_[{part, name}];
  if (!slot) {
    const CompletePart& where = parts()[part];
    const std::string directory = where.directory + "/" + name;
    LIB_TRY(ArrayReader reader, ArrayReader::open(impl_->files_, directory));
    const auto record =
        std::find_if(where.file.arrays.begin(), where.file.arrays.end(),
                     [&](const ArrayRecord& candidate) { return candidate.name == name; });
    const ArrayLayout& layout = reader.layout();
    // The manifest and the array each have a seal; together they must still tell one story.
    if (record == where.file.arrays.end() || record->shape != layout.shape() ||
        record->dtype != stored_type_name(layout.type) || reader.capture() != name ||
        layout.rows != rows_of(where.file, reader.attributes())) {
      return Error(ErrorCode::corrupt,
                   directory + "/zarr.json: this is not the array that the part's manifest lists");
    }
    // A whole shard in another's place has good checksums inside; its size gives most away.
    for (const FileRecord& file : where.file.files) {
      if (!file.path.starts_with(name + "/")) {
        continue;
      }
      const std::string path = where.directory + "/" + file.path;
      const auto info = impl_->files_.info(path);
      if (!info || info->size != file.size) {
        return Error(ErrorCode::corrupt, path + ": missing or not the " +
                                             std::to_string(file.size) +
                                             " bytes that the part's manifest lists");
      }
    }
    slot = std::make_unique<ArrayReader>(std::move(reader));
  }
  return slot.get();
}

Result<const std::vector<std::int64_t>*> StoreReader::offsets(std::uint64_t part) const {
  const std::lock_guard<std::mutex> guard(impl_->mutex_);
  auto& values = impl_->offsets_[part];
  if (values.empty()) {
    const CompletePart& where = parts()[part];
    LIB_TRY(auto read, token_values<std::int64_t>(impl_->files_, where, "offsets", "int64",
                                                  where.file.range.samples + 1));
    LIB_TRY_VOID(check_offsets(read, where.file.range.tokens, where.directory + "/tokens/offsets"));
    values = std::move(read);
  }
  return &values;
}

Result<const std::vector<std::int64_t>*> StoreReader::kept_rows(std::uint64_t part,
                                                                const std::string& rows) const {
  const std::lock_guard<std::mutex> guard(impl_->mutex_);
  auto& values = impl_->kept_rows_[{part, rows}];
  if (!values) {
    const CompletePart& where = parts()[part];
    ArrayAttributes attributes;
    attributes.rows = rows;
    const std::string name = rows.substr(rows.find('/') + 1);
    LIB_TRY(auto read, token_values<std::int64_t>(impl_->files_, where, name.c_str(), "int64",
                                                  rows_of(where.file, attributes)));
    LIB_TRY_VOID(check_rows(read, where.file.range.tokens, where.directory + "/" + rows));
    values = std::make_unique<std::vector<std::int64_t>>(std::move(read));
  }
  return values.get();
}

Result<std::vector<std::int64_t>> StoreReader::sample_index(std::uint64_t part) const {
  const CompletePart& where = parts()[part];
  return token_values<std::int64_t>(impl_->files_, where, "sample_index", "int64",
                                    where.file.range.samples);
}

Result<std::vector<std::int32_t>> StoreReader::input_ids(std::uint64_t part, std::uint64_t begin,
                                                         std::uint64_t end) const {
  const CompletePart& where = parts()[part];
  LIB_TRY(auto ids, token_values<std::int32_t>(impl_->files_, where, "input_ids", "int32",
                                               where.file.range.tokens));
  if (begin > end || end > ids.size()) {
    return Error(ErrorCode::invalid_argument, where.directory + ": no such rows");
  }
  return std::vector<std::int32_t>(ids.begin() + static_cast<std::ptrdiff_t>(begin),
                                   ids.begin() + static_cast<std::ptrdiff_t>(end));
}

}  // namespace librarian::activation_store
