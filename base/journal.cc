#include "base/journal.h"

#include <cstring>
#include <optional>

#include "base/digest.h"
#include "base/random.h"

namespace librarian {
namespace {

constexpr std::uint32_t kMagic = 0x314A424C;  // "LBJ1"
constexpr std::size_t kHeadBytes = 20;
constexpr std::size_t kTailBytes = 4;
constexpr std::uint32_t kRecordBytesMax = 256U << 20U;
constexpr std::uint64_t kJournalBytesMax = 4ULL << 30U;

template <typename T>
void put(std::string& text, T value) {
  text.append(reinterpret_cast<const char*>(&value), sizeof value);
}

template <typename T>
T get(std::string_view text, std::size_t at) {
  T value{};
  std::memcpy(&value, text.data() + at, sizeof value);
  return value;
}

std::uint32_t crc_of(std::string_view text) { return crc32c(std::as_bytes(std::span(text))); }

struct Frame {
  std::uint64_t sequence;
  std::uint32_t previous_crc;
  std::uint32_t crc;
  std::string_view record;
  std::size_t bytes;
};

/// The frame that begins at `at`, if a whole one does.
std::optional<Frame> frame_at(std::string_view text, std::size_t at) {
  if (text.size() - at < kHeadBytes + kTailBytes || get<std::uint32_t>(text, at) != kMagic) {
    return std::nullopt;
  }
  const auto record_bytes = get<std::uint32_t>(text, at + 4);
  if (record_bytes > kRecordBytesMax || text.size() - at - kHeadBytes - kTailBytes < record_bytes) {
    return std::nullopt;
  }
  const std::size_t checked = kHeadBytes + record_bytes;
  Frame frame{get<std::uint64_t>(text, at + 8), get<std::uint32_t>(text, at + 16),
              get<std::uint32_t>(text, at + checked), text.substr(at + kHeadBytes, record_bytes),
              checked + kTailBytes};
  if (crc_of(text.substr(at, checked)) != frame.crc) {
    return std::nullopt;
  }
  return frame;
}

}  // namespace

Result<JournalContents> read_journal(FileSystem& files, const std::string& path) {
  LIB_TRY(const std::string text, read_small_file(files, path, kJournalBytesMax));
  JournalContents contents;
  std::size_t at = 0;
  std::uint32_t previous_crc = 0;
  while (at < text.size()) {
    const std::optional<Frame> frame = frame_at(text, at);
    if (!frame || frame->sequence != contents.records.size() ||
        frame->previous_crc != previous_crc) {
      break;
    }
    contents.records.emplace_back(frame->record);
    previous_crc = frame->crc;
    at += frame->bytes;
  }
  contents.torn_bytes = text.size() - at;
  // A crash can only cut the last write short. A whole frame further on means that what lies
  // before it was once whole too.
  for (std::size_t later = at + 1; later + kHeadBytes + kTailBytes <= text.size(); ++later) {
    if (frame_at(text, later)) {
      return Error(ErrorCode::corrupt,
                   path + ": damaged at byte " + std::to_string(at) + ", inside record " +
                       std::to_string(contents.records.size()) +
                       "; remove this part's directory to have the part computed again");
    }
  }
  return contents;
}

Result<JournalWriter> JournalWriter::create(FileSystem& files, const std::string& path,
                                            const std::vector<std::string>& records) {
  const std::string temporary = path + ".partial-" + random_hex(8);
  LIB_TRY(std::unique_ptr<File> file, files.create(temporary));
  JournalWriter writer(std::move(file));
  std::string text;
  for (const std::string& record : records) {
    text += writer.frame(record);
  }
  LIB_TRY_VOID(writer.file_->append(std::as_bytes(std::span(text))));
  LIB_TRY_VOID(writer.file_->sync_data());
  LIB_TRY_VOID(files.rename(temporary, path));
  LIB_TRY_VOID(files.sync_directory(parent_path(path)));
  return writer;
}

Result<void> JournalWriter::append(std::string_view record) {
  const std::string text = frame(record);
  LIB_TRY_VOID(file_->append(std::as_bytes(std::span(text))));
  return file_->sync_data();
}

std::string JournalWriter::frame(std::string_view record) {
  LIB_CHECK(record.size() <= kRecordBytesMax);
  std::string text;
  put(text, kMagic);
  put(text, static_cast<std::uint32_t>(record.size()));
  put(text, sequence_++);
  put(text, previous_crc_);
  text += record;
  previous_crc_ = crc_of(text);
  put(text, previous_crc_);
  return text;
}

}  // namespace librarian
