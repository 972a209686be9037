#include "weightmap/remote/fetch_job.h"

#include <algorithm>
#include <cmath>

#include "base/random.h"
#include "base/units.h"
#include "weightmap/remote/scatter.h"

namespace librarian::weightmap::remote {

RetryRule::RetryRule(const RetryPolicy& policy, std::function<double()> jitter)
    : policy_(policy), jitter_(std::move(jitter)) {
  if (!jitter_) {
    jitter_ = [] { return std::ldexp(static_cast<double>(random_u64() >> 11U), -53); };
  }
}

Duration RetryRule::backoff(std::uint32_t failures) const {
  const int doublings = static_cast<int>(std::min<std::uint32_t>(failures, 32)) - 1;
  const double longest = std::min(
      std::ldexp(static_cast<double>(policy_.backoff_base.count()), std::max(doublings, 0)),
      static_cast<double>(policy_.backoff_max.count()));
  return Duration(static_cast<Duration::rep>(longest * std::clamp(jitter_(), 0.0, 1.0)));
}

FetchJob::FetchJob(Uri uri, std::vector<FetchPiece> pieces)
    : uri_(std::move(uri)), origin_(uri_.origin()), pieces_(std::move(pieces)) {
  LIB_CHECK(!pieces_.empty());
  std::uint64_t end = pieces_.front().range.begin;
  for (const FetchPiece& piece : pieces_) {
    LIB_CHECK(piece.range.begin >= end && piece.range.end > piece.range.begin);
    LIB_CHECK(piece.destination != nullptr);
    end = piece.range.end;
    asked_pieces_.push_back(piece.range);
  }
  asked_ = {pieces_.front().range.begin, end};
}

TransferRequest FetchJob::request(TimePoint now) {
  if (!progressed_at_) {
    progressed_at_ = now;
  }
  return request_from(missing().begin);
}

TransferRequest FetchJob::request_from(std::uint64_t begin) const {
  TransferRequest transfer;
  transfer.uri = uri_;
  transfer.pieces = clip_pieces(pieces_, begin, missing().end);
  if (!transfer.pieces.empty()) {
    transfer.range = {transfer.pieces.front().range.begin, transfer.pieces.back().range.end};
  }
  transfer.expected = expected;
  transfer.fresh_connection = failures_ > 0;
  transfer.document = document;
  return transfer;
}

std::uint64_t FetchJob::piece_bytes() const {
  std::uint64_t bytes = 0;
  for (const FetchPiece& piece : pieces_) {
    bytes += piece.range.size();
  }
  return bytes;
}

Error FetchJob::name(const Error& error) const {
  return error.with_context(uri_.display() + " bytes [" + std::to_string(asked_.begin) + ", " +
                            std::to_string(asked_.end) + ")");
}

Error FetchJob::final_error(const Error& error) const {
  if (error.code() == ErrorCode::not_found && !opening) {
    const std::string what = error.message().substr(0, error.message().find("; "));
    return name(Error(ErrorCode::bad_input,
                      what + ", but it was there when the job began; put it back and run the same "
                             "command again"));
  }
  return name(error);
}

void FetchJob::take_progress(const TransferResult& transfer, const RetryRule& rule, TimePoint now) {
  if (document) {
    return;  // There is no asking for the rest of one.
  }
  if (!expected && transfer.info) {
    expected = transfer.info;  // The rest must come from the same bytes.
  }
  if (transfer.bytes_in_order == 0) {
    return;
  }
  progressed_at_ = now;
  progress_bytes_ += transfer.bytes_in_order;
  if (progress_bytes_ >= rule.policy().progress_bytes) {
    progress_bytes_ = 0;
    failures_ = 0;
  }
  take_crcs(transfer);
  const std::uint64_t end = expected ? expected->size : asked_.end;
  pieces_ = clip_pieces(pieces_, missing().begin + transfer.bytes_in_order, end);
  LIB_CHECK(!pieces_.empty());  // A transport that has all of it reports no error.
}

/// What a transfer wrote past the bytes that it answers for will be fetched again.
void FetchJob::take_crcs(const TransferResult& transfer) {
  append_runs(crcs_, transfer.crcs, missing().begin + transfer.bytes_in_order);
}

CrcRuns FetchJob::piece_crcs() const {
  CrcRuns whole;
  for (const ByteRange& piece : asked_pieces_) {
    if (const auto crc = crc_of(crcs_, piece)) {
      whole.push_back({piece, *crc});
    }
  }
  return whole;
}

FetchJob::Landing FetchJob::land(const TransferResult& transfer, const RetryRule& rule,
                                 TimePoint now, TimePoint cool_until) {
  if (!transfer.error) {
    LIB_CHECK(transfer.info.has_value());
    if (transfer.info->size == 0) {
      return {name(Error(ErrorCode::bad_input, "the file is empty")), {}};
    }
    const std::uint64_t end = std::min(pieces_.back().range.end, transfer.info->size);
    LIB_CHECK(transfer.bytes_in_order == end - missing().begin);
    take_crcs(transfer);
    return {Landed{*transfer.info, transfer.link, piece_crcs()}, {}};
  }
  const Error& error = *transfer.error;
  if (error.code() != ErrorCode::unavailable) {
    return {final_error(error), {}};
  }
  take_progress(transfer, rule, now);
  ++failures_;
  if (failures_ >= rule.policy().attempts_max) {
    return {name(Error(ErrorCode::unavailable,
                       "gave up after " + std::to_string(failures_) +
                           " failures in a row, the last: " + error.message() +
                           "; check the source and run the same command again: it resumes")),
            {}};
  }
  not_before_ = now + rule.backoff(failures_);
  if (std::max(not_before_, cool_until) > *progressed_at_ + rule.policy().give_up) {
    return {name(Error(ErrorCode::unavailable,
                       "no progress within " + format_duration(rule.policy().give_up) +
                           ", the last failure: " + error.message() +
                           "; check the source and run the same command again: it resumes")),
            {}};
  }
  return {std::nullopt, error.message()};
}

}  // namespace librarian::weightmap::remote
