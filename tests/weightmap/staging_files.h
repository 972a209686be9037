#pragma once
/// A remote object and a staging directory in memory, for tests of what lies between.

#include <map>
#include <memory>
#include <string>

#include "base/clock.h"
#include "tests/ingest/tiny_model.h"
#include "tests/support/memory_file_system.h"
#include "weightmap/remote/fetcher.h"
#include "weightmap/remote/file_staging.h"
#include "weightmap/remote/staging_directory.h"

namespace librarian::weightmap::testing {

inline constexpr const char* kStagingPath = "/scratch/weights";

/// `size` bytes that repeat nowhere soon.
inline std::string object_bytes(std::uint64_t size) {
  std::string bytes(size, '\0');
  std::uint32_t state = 1;
  for (char& byte : bytes) {
    state = state * 1664525U + 1013904223U;
    byte = static_cast<char>(state >> 24U);
  }
  return bytes;
}

inline std::unique_ptr<remote::StagingDirectory> open_staging(FileSystem& files,
                                                              std::uint64_t limit_bytes,
                                                              std::uint64_t segment_bytes) {
  auto directory = remote::StagingDirectory::open(files, real_clock(),
                                                  {kStagingPath, limit_bytes, segment_bytes});
  LIB_CHECK(directory.has_value());
  return *std::move(directory);
}

/// One object "/model/object", served from memory and opened.
struct RemoteObject {
  explicit RemoteObject(std::uint64_t size, std::uint32_t connections = 8)
      : contents{{"object", object_bytes(size)}},
        transport(contents),
        fetcher(transport, real_clock(), options(connections)) {
    transport.offer_sha256();
    auto opened = fetcher.open(
        remote::parse_uri(std::string(ingest::testing::kModelUri) + "object").value(), 1, {});
    LIB_CHECK(opened.has_value());
    id = opened->id;
    info = opened->info;
    key = remote::staging_key({}, info);
  }
  const std::string& bytes() const { return contents.at("object"); }
  /// Bytes served without the one of open().
  std::uint64_t served_bytes() const {
    std::uint64_t sum = 0;
    for (const auto& range : transport.served()) {
      sum += range.range.size();
    }
    return sum - 1;
  }
  static remote::FetcherOptions options(std::uint32_t connections) {
    remote::FetcherOptions result;
    result.connections = connections;
    return result;
  }

  std::map<std::string, std::string> contents;
  ingest::testing::MapTransport transport;
  remote::Fetcher fetcher;
  remote::ObjectId id = 0;
  remote::ObjectInfo info;
  std::string key;
};

}  // namespace librarian::weightmap::testing
