#include "ingest/residual_state.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>

namespace librarian::ingest {
namespace {

constexpr const char* kKindNames[] = {"none", "file", "array"};

}  // namespace

Json StatePlace::to_json() const {
  return {{"kind", kKindNames[static_cast<std::size_t>(kind)]}, {"name", name}};
}

Result<StatePlace> StatePlace::from_json(const Json& json) {
  LIB_TRY(const std::string kind, json_string(json, "kind", "state"));
  StatePlace place;
  LIB_TRY(place.name, json_string(json, "name", "state"));
  for (const Kind candidate : {Kind::none, Kind::file, Kind::array}) {
    if (kind == kKindNames[static_cast<std::size_t>(candidate)]) {
      place.kind = candidate;
      return place;
    }
  }
  return Error(ErrorCode::corrupt, "journal: unknown kind of state '" + kind + "'");
}

ResidualState::ResidualState(FileSystem& files, ResidualStateOptions options,
                             std::uint64_t block_rows_max)
    : files_(files), options_(std::move(options)) {
  memory_.resize((options_.in_memory ? options_.rows : std::min(block_rows_max, options_.rows)) *
                 options_.row_bytes);
}

Result<std::unique_ptr<ResidualState>> ResidualState::create(FileSystem& files,
                                                             const ResidualStateOptions& options,
                                                             std::uint64_t block_rows_max) {
  return std::unique_ptr<ResidualState>(new ResidualState(files, options, block_rows_max));
}

std::uint64_t ResidualState::memory_bytes(const ResidualStateOptions& options,
                                          std::uint64_t block_rows_max) {
  const std::uint64_t window = std::min(options.window_rows, options.rows);
  const std::uint64_t windows = (options.rows + options.window_rows - 1) / options.window_rows;
  // A reader's window or a writer's read-back, and both generations' checksums.
  const std::uint64_t file_bytes = window * options.row_bytes + 2 * windows * 4;
  return (options.in_memory ? options.rows : std::min(block_rows_max, options.rows)) *
             options.row_bytes +
         file_bytes;
}

std::string ResidualState::file_name(std::int32_t layer) {
  std::array<char, 32> name{};
  std::snprintf(name.data(), name.size(), "state.%04d", layer + 1);
  return name.data();
}

bool ResidualState::is_file_name(const std::string& name) {
  static constexpr std::string_view kPrefix = "state.";
  return name.starts_with(kPrefix) && name.size() >= kPrefix.size() + 4 && name.size() < 16 &&
         std::all_of(name.begin() + kPrefix.size(), name.end(),
                     [](char c) { return c >= '0' && c <= '9'; });
}

std::string ResidualState::file_path(const std::string& name) const {
  return options_.scratch_directory + "/" + name;
}

Result<void> ResidualState::restore(const StatePlace& place) {
  LIB_CHECK(place.kind != StatePlace::Kind::none);
  source_ = place;
  LIB_TRY_VOID(open_source());
  if (!options_.in_memory) {
    return {};
  }
  if (file_reader_) {
    LIB_TRY_VOID(file_reader_->read_rows(0, memory_));
  } else {
    LIB_TRY_VOID(array_reader_->read_rows(0, options_.rows, memory_));
  }
  file_reader_.reset();
  array_reader_.reset();
  return {};
}

Result<void> ResidualState::open_source() {
  file_reader_.reset();
  array_reader_.reset();
  if (source_.kind == StatePlace::Kind::file) {
    LIB_TRY(file_reader_, StateFileReader::open(files_, file_path(source_.name), options_.rows,
                                                options_.row_bytes));
  } else if (source_.kind == StatePlace::Kind::array) {
    LIB_TRY(array_reader_, activation_store::ArrayReader::open(
                               files_, options_.part_directory + "/" + source_.name));
    const activation_store::ArrayLayout& layout = array_reader_->layout();
    if (layout.rows != options_.rows ||
        layout.width * activation_store::element_bytes(layout.type) != options_.row_bytes) {
      return Error(ErrorCode::corrupt, options_.part_directory + "/" + source_.name +
                                           ": has another shape than the state it should hold");
    }
  }
  return {};
}

Result<void> ResidualState::begin_embedding(const std::string& covered_by_array) {
  layer_ = -1;
  covered_by_ = options_.in_memory ? covered_by_array : "";
  if (!options_.in_memory) {
    LIB_TRY(writer_, StateFileWriter::create(files_, file_path(file_name(layer_)), options_.rows,
                                             options_.row_bytes, options_.window_rows));
  }
  return {};
}

Result<void> ResidualState::put_row(std::uint64_t row, std::span<const std::byte> bytes) {
  if (writer_) {
    return writer_->write_rows(row, bytes);
  }
  std::memcpy(memory_.data() + row * options_.row_bytes, bytes.data(), bytes.size());
  return {};
}

Result<void> ResidualState::begin_layer(std::int32_t layer, const std::string& covered_by_array,
                                        bool needed) {
  layer_ = layer;
  covered_by_ = covered_by_array;
  if (!options_.in_memory && needed && covered_by_.empty()) {
    LIB_TRY(writer_, StateFileWriter::create(files_, file_path(file_name(layer_)), options_.rows,
                                             options_.row_bytes, options_.window_rows));
  }
  return {};
}

Result<std::span<std::byte>> ResidualState::load(std::uint64_t begin, std::uint64_t rows) {
  if (options_.in_memory) {
    return std::span(memory_).subspan(begin * options_.row_bytes, rows * options_.row_bytes);
  }
  if (!file_reader_ && !array_reader_) {
    LIB_TRY_VOID(open_source());
  }
  const std::span<std::byte> block = std::span(memory_).first(rows * options_.row_bytes);
  if (file_reader_) {
    LIB_TRY_VOID(file_reader_->read_rows(begin, block));
  } else {
    LIB_TRY_VOID(array_reader_->read_rows(begin, begin + rows, block));
  }
  return block;
}

Result<void> ResidualState::store(std::uint64_t begin, std::span<const std::byte> rows) {
  if (writer_) {
    return writer_->write_rows(begin, rows);
  }
  if (options_.in_memory && rows.data() != memory_.data() + begin * options_.row_bytes) {
    std::memcpy(memory_.data() + begin * options_.row_bytes, rows.data(), rows.size());
  }
  return {};
}

Result<StatePlace> ResidualState::end_layer(bool durable) {
  StatePlace place;
  if (writer_) {
    LIB_TRY_VOID(writer_->finish());
    writer_.reset();
    place = {StatePlace::Kind::file, file_name(layer_)};
  } else if (!covered_by_.empty()) {
    place = {StatePlace::Kind::array, covered_by_};
  } else if (durable) {
    LIB_TRY(StateFileWriter writer,
            StateFileWriter::create(files_, file_path(file_name(layer_)), options_.rows,
                                    options_.row_bytes, options_.window_rows));
    LIB_TRY_VOID(writer.write_rows(0, memory_));
    LIB_TRY_VOID(writer.finish());
    place = {StatePlace::Kind::file, file_name(layer_)};
  }
  if (place.kind == StatePlace::Kind::file) {
    LIB_TRY_VOID(files_.sync_directory(options_.scratch_directory));
  }
  if (place.kind != StatePlace::Kind::none) {
    source_ = place;
    file_reader_.reset();
    array_reader_.reset();
  }
  return place;
}

Result<void> ResidualState::drop_old_files(std::int32_t layer, const StatePlace& place) const {
  LIB_TRY(const std::vector<std::string> names, files_.list(options_.scratch_directory));
  for (const std::string& name : names) {
    const bool named = place.kind == StatePlace::Kind::file && name == place.name;
    // Equal lengths make the order of names the order of layers.
    if (is_file_name(name) && name <= file_name(layer) && !named) {
      LIB_TRY_VOID(files_.remove_file(options_.scratch_directory + "/" + name));
    }
  }
  return {};
}

}  // namespace librarian::ingest
