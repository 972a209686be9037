#pragma once
/// Brings byte ranges of remote or local objects to given places in memory: admitted by a number
/// of connections, retried, checked. Does not know what a tensor is.

#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "weightmap/remote/origin_pace.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

/// One request on the wire: from the first piece's begin to the last one's end. Bytes between
/// pieces are fetched and dropped, so the caller decides which holes are worth it.
struct FetchRequest {
  ObjectId object;
  std::vector<FetchPiece> pieces;  ///< Sorted, disjoint, none empty; at least one.
  /// What is needed together, such as a layer; never falling. Of the two lowest groups under way,
  /// requests that take too long are sent twice.
  std::uint64_t group = 0;
};

/// When a failed request is tried again. It goes on from its first missing byte.
struct RetryPolicy {
  Duration backoff_base = std::chrono::milliseconds(500);  ///< Full jitter: uniform in [0, b*2^n].
  Duration backoff_max = std::chrono::seconds(20);
  Duration retry_after_max = std::chrono::minutes(5);  ///< A longer Retry-After is cut to this.
  std::uint32_t attempts_max = 8;                      ///< In a row without progress.
  std::uint64_t progress_bytes = 1U << 20U;            ///< This much resets the count.
  Duration give_up = std::chrono::minutes(15);         ///< Without any progress at all.
};

struct FetcherOptions {
  std::uint32_t connections = 8;  ///< At most; an origin may be sent fewer.
  RetryPolicy retry;
  double hedge_budget = 0;  ///< Extra bytes per byte for requests sent twice; 0: none are.
  /// Uniform in [0, 1]; called on the fetcher's thread. Empty: random.
  std::function<double()> jitter;
};

struct FetchStatistics {
  std::uint64_t requests = 0;  ///< Started, retries included.
  std::uint64_t retries = 0;
  std::uint64_t hedges = 0;       ///< Requests sent a second time because they were late.
  std::uint64_t hedge_bytes = 0;  ///< Received twice for that.
  std::uint64_t resolves = 0;     ///< Times a hub was asked where a file lies.
  std::uint64_t body_bytes = 0;   ///< Received, wanted or not: what the wire carried.
  std::uint64_t piece_bytes = 0;  ///< Placed at destinations.
  Duration busy{};                ///< At least one request was in flight.
};

/// Thread-safe. Owns its thread; destruction stops it, cancels what is in flight and waits until
/// no destination can be touched any more. No other call may run into the destruction.
class Fetcher {
 public:
  Fetcher(Transport& transport, Clock& clock, const FetcherOptions& options);
  ~Fetcher();
  Fetcher(const Fetcher&) = delete;
  Fetcher& operator=(const Fetcher&) = delete;

  /// What open() learned of an object.
  struct Opened {
    ObjectId id;
    ObjectInfo info;
    std::string head;  ///< Its first bytes: `head_bytes`, or all if it is shorter.
  };
  /// Registers an object, learns its size and validator and reads its first bytes, in one request.
  /// All later requests for it must see the same size and validator.
  /// @param head_bytes  Allocated before the request; at least 1.
  /// @error not_found (404, 410, no such file) | bad_input (401, 403, HTML, an empty object) |
  ///        invalid_argument (plain http that is not allowed) | unavailable | cancelled
  Result<Opened> open(const Uri& uri, std::uint64_t head_bytes, const std::stop_token& stop);
  /// As open(), and knowing already what it must be. @error source_changed  it is not.
  Result<Opened> open(const Uri& uri, std::uint64_t head_bytes, const ObjectInfo& expected,
                      const std::stop_token& stop);

  /// Opens several objects side by side: `head_bytes` of memory for each.
  /// @return  One result per URI, in order. When one fails, those not yet done are cancelled.
  std::vector<Result<Opened>> open_all(const std::vector<Uri>& uris, std::uint64_t head_bytes,
                                       const std::stop_token& stop);

  struct Document {
    std::string body;
    std::string link;  ///< See TransferResult.
  };
  /// Reads a small document that has no known size and no ranges, such as an API's answer.
  /// @param bytes_max  Allocated before the request.
  /// @error as open(); bad_input if it is larger than `bytes_max`.
  Result<Document> read_document(const Uri& uri, std::uint64_t bytes_max,
                                 const std::stop_token& stop);

  /// Names a request that was submitted.
  using RequestId = std::uint64_t;
  /// Called once, on the fetcher's thread; must not block. For each piece whose bytes were summed
  /// as they came its CRC32C, so that it can be told later whether they are still the same; there
  /// is none of local files. @error unavailable | source_changed | bad_input | cancelled
  using Done = std::function<void(Result<CrcRuns>)>;
  /// Queues a request; requests start in the order they are queued. Each message of an error names
  /// URI and byte range.
  RequestId submit(FetchRequest request, Done done);
  /// Ends a request with `cancelled`, unless it is ending already; its `done` is still called.
  void cancel(RequestId request);

  /// submit() and wait for it. After a `stop` it waits until the destinations are left alone
  /// (within a second). Not from `done`.
  Result<void> fetch(FetchRequest request, const std::stop_token& stop);

  /// Ends every request that was queued so far with `cancelled`; their `done` is still called.
  void cancel_all();

  /// Sizes of requests that suit the object's origin, as far as it is known by now.
  RequestSizes sizes(ObjectId object) const;
  /// Bytes of requests under way are counted as they come.
  FetchStatistics statistics() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

/// Reads a whole small object such as config.json: one request up to 1 MiB, two above.
/// @error bad_input  it is larger than `bytes_max`; else as Fetcher::open() and fetch().
Result<std::string> read_object(Fetcher& fetcher, const Uri& uri, std::uint64_t bytes_max,
                                const std::stop_token& stop);

}  // namespace librarian::weightmap::remote
