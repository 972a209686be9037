#pragma once
/// One request on its way through the Fetcher: what is missing, how often it failed, what next.
/// Decisions only: no threads, no waiting; time is passed in.

#include <cstdint>
#include <functional>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "weightmap/remote/fetcher.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

/// The retry policy with its source of chance.
class RetryRule {
 public:
  /// @param jitter  Uniform in [0, 1]; empty: random.
  RetryRule(const RetryPolicy& policy, std::function<double()> jitter);

  const RetryPolicy& policy() const { return policy_; }
  /// How long to wait after the `failures`-th failure in a row (from 1).
  /// @source "Full jitter": AWS architecture blog, Exponential Backoff And Jitter, 2015.
  Duration backoff(std::uint32_t failures) const;

 private:
  RetryPolicy policy_;
  std::function<double()> jitter_;
};

class FetchJob {
 public:
  /// What a job that went well learned.
  struct Landed {
    ObjectInfo info;
    std::string link;  ///< As in TransferResult.
    CrcRuns crcs;      ///< One for each piece whose bytes all have one.
  };
  using Done = std::function<void(Result<Landed>)>;

  /// @param pieces  Sorted, disjoint, none empty; at least one (LIB_CHECK).
  FetchJob(Uri uri, std::vector<FetchPiece> pieces);

  /// The transfer of all that is missing.
  TransferRequest request(TimePoint now);
  /// The same from offset `begin` on; without pieces if nothing is wanted there.
  TransferRequest request_from(std::uint64_t begin) const;

  /// What became of the last request().
  struct Landing {
    std::optional<Result<Landed>> result;  ///< Final, if set; else try again at not_before().
    std::string why;                       ///< The failure that is tried again.
  };
  /// @param cool_until  When the origin may be asked again, at the earliest.
  Landing land(const TransferResult& transfer, const RetryRule& rule, TimePoint now,
               TimePoint cool_until);

  /// `error` with URI and byte range put before its message.
  Error name(const Error& error) const;

  const Uri& uri() const { return uri_; }
  const std::string& origin() const { return origin_; }
  TimePoint not_before() const { return not_before_; }
  std::uint32_t failures() const { return failures_; }
  /// From the first byte that is not in place to the last one.
  ByteRange missing() const { return {pieces_.front().range.begin, pieces_.back().range.end}; }
  std::uint64_t piece_bytes() const;
  /// Two transfers may write to its destinations at a time: a transport of one thread does that.
  bool may_hedge() const { return uri_.scheme != "file"; }

  bool opening = false;                ///< The object is not known yet: 404 is `not_found`.
  bool document = false;               ///< As in TransferRequest.
  std::optional<ObjectInfo> expected;  ///< What the object must be, once that is known.
  Done done;
  std::uint64_t group = 0;       ///< As in FetchRequest.
  std::optional<Error> refused;  ///< Set: never goes on the wire, ends with this.

 private:
  Error final_error(const Error& error) const;
  void take_progress(const TransferResult& transfer, const RetryRule& rule, TimePoint now);
  void take_crcs(const TransferResult& transfer);
  CrcRuns piece_crcs() const;

  Uri uri_;
  std::string origin_;
  std::vector<FetchPiece> pieces_;  // Still missing.
  std::vector<ByteRange> asked_pieces_;
  CrcRuns crcs_;                // Of what is in place.
  ByteRange asked_;             // At first; for messages.
  std::uint32_t failures_ = 0;  // In a row without enough progress.
  std::uint64_t progress_bytes_ = 0;
  std::optional<TimePoint> progressed_at_;  // Or first tried.
  TimePoint not_before_{};
};

}  // namespace librarian::weightmap::remote
