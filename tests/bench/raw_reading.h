#pragma once
/// What the machine's sockets can do: an object read with plain recv() into its final place.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/error.h"

namespace librarian::bench {

/// An object of an HTTP server on 127.0.0.1.
struct RawObject {
  std::uint16_t port = 0;
  std::string path;
};
/// Takes "http://127.0.0.1:PORT/PATH" apart. @error invalid_argument  it is nothing like that.
Result<RawObject> parse_raw_url(const std::string& url);

/// The object's size, from the answer to a request for its first byte.
Result<std::uint64_t> raw_object_bytes(const RawObject& object);

/// Reads the object `passes` times, `destination` is its size: one thread per connection, each
/// asking for the next range of `request_bytes`. @return the requests sent.
Result<std::uint64_t> read_raw(const RawObject& object, std::uint32_t connections,
                               std::uint64_t request_bytes, std::uint32_t passes,
                               std::span<std::byte> destination);

}  // namespace librarian::bench
