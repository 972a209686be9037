#pragma once
/// Moves the bytes of one range request; knows nothing of retries. Implementations: libcurl for
/// http and https, files for local paths, and scripted ones in tests.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "weightmap/remote/byte_range.h"
#include "weightmap/remote/crc_run.h"

namespace librarian::weightmap::remote {

/// Index of an object that a Fetcher has opened.
using ObjectId = std::uint32_t;

/// A parsed place: `https://host/dir/file`, `hf://org/name@revision`, `s3://bucket/key`,
/// `file:///path` or a plain path.
struct Uri {
  std::string scheme;  ///< "http", "https", "hf", "s3" or "file"
  std::string text;    ///< Normalised; for "file" the path. Never carries user or password.
  /// For messages and logs: without a query, which may be a signature.
  std::string display() const;
  /// The object `name` in the directory this names; `name` is one path component: not empty, "."
  /// or "..", and without '/' and NUL. The directory's query, if any, stays.
  Uri child(const std::string& name) const;
  /// Scheme, host and port ("https://host:8443"): what a server's Retry-After speaks for.
  std::string origin() const;
  bool operator==(const Uri&) const = default;
};
/// @error invalid_argument  not a place, or a scheme that is not built in (names it).
Result<Uri> parse_uri(const std::string& text);

/// Whether weights may be read from there: https and files always, plain http only from this
/// machine or where `insecure_http` allows it, because anybody on the way could change the bytes.
/// @error invalid_argument  says what to do.
Result<void> check_allowed(const Uri& uri, bool insecure_http);

/// What identifies an object's bytes at its origin.
struct ObjectInfo {
  std::uint64_t size = 0;
  /// ETag as sent, "last-modified:<date>" from servers without ETags, "mtime:<ns>:inode:<n>" for
  /// files; empty if the origin gives nothing.
  std::string validator;
  bool strong = false;  ///< Equal strong validators mean equal bytes.
  /// SHA-256 of all its bytes as the origin states it, 64 lower-case hex digits; empty if it does
  /// not. Nobody has checked it yet.
  std::string sha256 = {};
  /// The same for a CRC of the whole object: "crc64nvme:<16 hex>", "crc32c:<8 hex>", or empty.
  std::string crc = {};
  bool operator==(const ObjectInfo&) const = default;
};

/// Bytes [range.begin, range.end) go to destination[0 .. range.size()).
struct FetchPiece {
  ByteRange range;
  std::byte* destination = nullptr;  ///< Not touched after the request's completion.
};

/// One range to move, once.
struct TransferRequest {
  Uri uri;
  /// From the first piece's begin to the last one's end. While `expected` is not known it may
  /// reach past the object's end, and is cut there.
  ByteRange range;
  std::vector<FetchPiece> pieces;  ///< Sorted, disjoint, none empty; holes are dropped.
  /// What the object must be; none while it is being opened.
  std::optional<ObjectInfo> expected;
  bool fresh_connection = false;  ///< After a failure: do not reuse a connection, it may be stale.
  /// A small document of unknown size, such as an API's answer, instead of a range: `range` begins
  /// at 0 and says how large it may be.
  bool document = false;
  std::stop_token stop = {};  ///< Ends the transfer early, within a second.
  /// If set, the transport keeps TransferResult::bytes_in_order there while it runs.
  std::shared_ptr<std::atomic<std::uint64_t>> progress = {};
};

/// What became of a TransferRequest.
struct TransferResult {
  /// Bytes of `range` that are in place, counted from its begin without a gap.
  std::uint64_t bytes_in_order = 0;
  std::uint64_t body_bytes = 0;   ///< Received, wanted or not.
  std::uint64_t piece_bytes = 0;  ///< Written to destinations.
  /// Of what was written to destinations, as it was received; of a transport that copies nothing,
  /// such as that of files, which reads to the destination itself: empty.
  CrcRuns crcs;
  std::optional<ObjectInfo> info;       ///< As the origin gave it; always set without an error.
  int status = 0;                       ///< HTTP status of the last answer; 0 if there is none.
  std::optional<Duration> retry_after;  ///< The server's wish; never negative.
  Duration first_byte{};                ///< From the request to its answer's first byte; 0: none.
  std::uint32_t resolves = 0;           ///< Times a hub was asked where the file lies.
  std::string link;                     ///< A document's Link field: where its next page is.
  /// None: all bytes of `range` up to the object's end are in place. `unavailable` is worth
  /// another try from the first missing byte; every other code is final. The message names
  /// neither URI nor range: the fetcher adds them.
  std::optional<Error> error;
};

/// Thread-safe. Must outlive its transfers' completions.
class Transport {
 public:
  virtual ~Transport() = default;

  /// Starts a transfer and returns at once; the number of simultaneous ones is the caller's
  /// choice. `done` is called exactly once, on any thread, possibly before start() returns, and
  /// must not block. From then on no destination is touched.
  virtual void start(TransferRequest request, std::function<void(TransferResult)> done) = 0;
};

/// Looks a variable up as getenv() does; tests put their own there.
using Environment = std::function<std::optional<std::string>(const std::string& name)>;
/// The process's own environment.
Environment process_environment();

/// Seconds since the Unix epoch on the wall clock.
std::int64_t wall_clock_s();

struct TransportOptions {
  bool insecure_http = false;     ///< Plain http from hosts other than this machine.
  std::uint32_t connections = 8;  ///< Idle connections kept, and threads that read files (<= 8).
  Duration connect_timeout = std::chrono::seconds(10);
  Duration stall_time = std::chrono::seconds(5);  ///< Without any byte: ended and tried again.
  /// A transfer slower than this for `low_speed_time` is ended and tried again. libcurl counts in
  /// seconds and averages over five.
  std::uint64_t low_speed_bytes_per_second = 16U << 10U;
  Duration low_speed_time = std::chrono::seconds(15);
  /// PEM file of trusted authorities; empty: CURL_CA_BUNDLE, SSL_CERT_FILE or the system's.
  std::string ca_file;
  std::uint64_t bandwidth_max = 0;  ///< Bytes per second over all transfers; 0: no limit.
  /// "Name: value" for the servers at `headers_origin` (scheme, host and port) and no other.
  std::vector<std::string> headers;
  std::string headers_origin;
  Environment environment = process_environment();  ///< Tokens, credentials, endpoints.
  /// Whether an address (as text) is of the public Internet; empty: by its range. For tests, whose
  /// addresses never are.
  std::function<bool(const std::string& address)> is_public;
};

/// The transport of the product: routes "file" to a pool of reading threads and "http", "https" to
/// libcurl, which starts with the first such request. The file threads wait through `clock`;
/// libcurl's thread lives in real time, so use http only with the real clock.
std::unique_ptr<Transport> make_transport(Clock& clock, const TransportOptions& options);

}  // namespace librarian::weightmap::remote
