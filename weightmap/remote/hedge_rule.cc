#include "weightmap/remote/hedge_rule.h"

#include <algorithm>

namespace librarian::weightmap::remote {
namespace {

constexpr double kWeight = 1.0 / 32;
constexpr double kFailingMax = 0.05;
// Below this, what looks late is the machine being busy.
constexpr Duration kLateMin = std::chrono::milliseconds(200);

}  // namespace

void HedgeRule::ended(bool failed) { failing_ += kWeight * ((failed ? 1.0 : 0.0) - failing_); }

Duration HedgeRule::late_after(Duration usual) { return std::max(2 * usual, kLateMin); }

bool HedgeRule::take(std::uint64_t bytes) {
  const double allowed = budget_ * static_cast<double>(wanted_bytes_);
  if (failing_ > kFailingMax || static_cast<double>(extra_bytes_ + bytes) > allowed) {
    return false;
  }
  extra_bytes_ += bytes;
  return true;
}

void HedgeRule::give_back(std::uint64_t bytes) { extra_bytes_ -= std::min(bytes, extra_bytes_); }

}  // namespace librarian::weightmap::remote
