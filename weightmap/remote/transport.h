#pragma once
/// Moves the bytes of one range request; knows nothing of retries. Implementations: libcurl for
/// http and https, files for local paths, and scripted ones in tests.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"

namespace librarian::weightmap::remote {

/// Half-open interval of byte offsets within one object.
struct ByteRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::uint64_t size() const { return end - begin; }
  bool operator==(const ByteRange&) const = default;
};

/// Index of an object that a Fetcher has opened.
using ObjectId = std::uint32_t;

/// A parsed place: `https://host/dir/file`, `file:///path` or a plain path.
struct Uri {
  std::string scheme;  ///< "http", "https" or "file"
  std::string text;    ///< Normalised; for "file" the path. Never carries user or password.
  /// For messages and logs: without a query, which may be a signature.
  std::string display() const;
  /// The object `name` in the directory this names; `name` is one path component.
  Uri child(const std::string& name) const;
  bool operator==(const Uri&) const = default;
};
/// @error invalid_argument  not a place, or a scheme that is not built in (names it).
Result<Uri> parse_uri(const std::string& text);

/// What identifies an object's bytes at its origin.
struct ObjectInfo {
  std::uint64_t size = 0;
  std::string validator;  ///< ETag as sent, or "mtime:<ns>:inode:<n>" for files; empty if none.
  bool strong = false;    ///< Equal strong validators mean equal bytes.
  bool operator==(const ObjectInfo&) const = default;
};

// (Transport is defined by the owner of this folder)
class Transport;

}  // namespace librarian::weightmap::remote
