#pragma once
/// A checkpoint in memory that tests take apart and put together again.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/json.h"
#include "tests/ingest/tiny_model.h"
#include "weightmap/checkpoint.h"
#include "weightmap/remote/fetcher.h"

namespace librarian::weightmap::testing {

struct FileTensor {
  std::string name;
  std::string dtype;
  std::vector<std::uint64_t> shape;
  std::string bytes;
};

struct CheckpointFiles {
  Json config;
  std::map<std::string, std::vector<FileTensor>> files;
  std::map<std::string, std::string> index;  ///< Tensor -> file; empty: no index is written.

  /// The tiny model of the ingest tests.
  static CheckpointFiles tiny(const ingest::testing::TinyModelOptions& options = {});
  /// Those of a directory.
  static CheckpointFiles read(const std::string& directory);
  static CheckpointFiles of(const std::map<std::string, std::string>& contents);
  FileTensor& tensor(const std::string& name);
  /// Takes a tensor out of its file (and leaves the index).
  FileTensor take(const std::string& name);
  /// File name -> contents, for MapTransport.
  std::map<std::string, std::string> contents() const;
};

/// Opens `contents` from memory.
struct OpenedCheckpoint {
  explicit OpenedCheckpoint(std::map<std::string, std::string> contents);
  std::map<std::string, std::string> contents;
  ingest::testing::MapTransport transport;
  remote::Fetcher fetcher;
  Result<Checkpoint> checkpoint;
};

}  // namespace librarian::weightmap::testing
