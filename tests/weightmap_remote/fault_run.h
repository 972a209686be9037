#pragma once
/// Plays faults on the product's own Fetcher and transport: ranges with holes over several
/// connections, from a real server on loopback, with waits cut short.

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fault_kinds.h"
#include "weightmap/remote/fetcher.h"

namespace librarian::weightmap::remote::testing {

enum class FaultResult : std::uint8_t { right_bytes, wrong_bytes, error, hang };

struct FaultReport {
  FaultResult result = FaultResult::hang;
  std::optional<Error> error;  ///< That of the first part in the object's order.
  bool guards_intact = true;   ///< Nothing was written outside the destinations.
  int struck = 0;              ///< Requests that were answered by the fault.
  FetchStatistics statistics;
  std::chrono::milliseconds took{0};
  /// The error's message without what differs from run to run: ports, byte counts, times.
  std::string sentence;
};

constexpr std::uint64_t kFaultObjectBytes = 3'000'001;
constexpr int kFaultParts = 8;
/// In every URL's query: never in a message.
constexpr const char* kUrlSecret = "SECRET-OF-THE-URL";

/// Where a fault strikes: `kind.target` on the part with this number.
struct PlacedFault {
  const FaultKind* kind;
  int part = 2;
  int from_attempt = 0;  ///< Earlier attempts are answered honestly.
};

struct FaultPlay {
  std::chrono::seconds limit = std::chrono::seconds(60);  ///< A run that takes longer is a hang.
  bool hedged = false;                                    ///< Late requests are sent twice.
};

/// Plays the faults at once; where two strike one request the first one has it. All but the first
/// must have the default setup.
FaultReport play(const std::vector<PlacedFault>& faults, FaultPlay how = {});

/// Nothing that the environment or the first fault's setup keeps from others.
bool plain_setup(const FaultKind& kind);

const char* result_name(FaultResult result);

}  // namespace librarian::weightmap::remote::testing
