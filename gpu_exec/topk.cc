#include "gpu_exec/topk.h"

#include <cmath>

#include "base/error.h"

namespace librarian::gpu_exec {

void clear_topk(std::span<std::byte> memory, std::uint32_t k) {
  const std::uint64_t row_bytes = topk_row_bytes(k);
  LIB_CHECK(memory.size() % row_bytes == 0);
  for (std::uint64_t at = 0; at < memory.size(); at += row_bytes) {
    const TopkRow row = topk_row(memory.data() + at, k);
    for (std::uint32_t i = 0; i < k; ++i) {
      row.logits[i] = std::numeric_limits<float>::quiet_NaN();
      row.ids[i] = -1;
    }
    *row.maximum = -std::numeric_limits<float>::infinity();
    *row.sum = 0;
    *row.gold = std::numeric_limits<float>::quiet_NaN();
    *row.count = 0;
  }
}

bool finish_topk(std::span<std::byte> memory, std::uint32_t k, bool has_gold,
                 const TopkResult& result) {
  LIB_CHECK(memory.size() == topk_row_bytes(k) && result.ids.size() == k &&
            result.log_prob.size() == k);
  const TopkRow row = topk_row(memory.data(), k);
  // An infinite maximum leaves NaN in the sum, and the logarithm of that is not what e^x adds up
  // to.
  const float logsumexp = std::isinf(*row.maximum) && *row.maximum > 0
                              ? *row.maximum
                              : static_cast<float>(static_cast<double>(*row.maximum) +
                                                   std::log(static_cast<double>(*row.sum)));
  bool finite = std::isfinite(logsumexp);
  for (std::uint32_t i = 0; i < k; ++i) {
    const float log_prob = row.logits[i] - logsumexp;
    finite = finite && std::isfinite(log_prob);
    result.ids[i] = row.ids[i];
    result.log_prob[i] = f32_to_f16(log_prob);
  }
  *result.logsumexp = logsumexp;
  *result.gold_log_prob =
      has_gold ? *row.gold - logsumexp : std::numeric_limits<float>::quiet_NaN();
  return finite && (!has_gold || std::isfinite(*result.gold_log_prob));
}

}  // namespace librarian::gpu_exec
