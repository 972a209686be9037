#pragma once
/// Top k of rows the long way, and what every device's must be like.

#include <cstdint>
#include <functional>
#include <vector>

#include "gpu_exec/device.h"
#include "tests/gpu_exec/exec_testing.h"

namespace librarian::gpu_exec {

/// Logits of rows before the head's multiplier and cap, and what comes next.
struct TopkCase {
  std::uint64_t rows = 0, vocabulary = 0;
  std::uint32_t k = 0;
  float multiplier = 1.0F, softcap = 0;
  std::vector<float> products;         ///< [rows, vocabulary]
  std::vector<std::int32_t> gold_ids;  ///< [rows]
};
TopkCase random_case(std::uint64_t rows, std::uint64_t vocabulary, std::uint32_t k,
                     std::uint64_t seed);

struct TopkAnswer {
  std::vector<std::int32_t> ids;        ///< [rows, k]
  std::vector<std::uint16_t> log_prob;  ///< [rows, k]
  std::vector<float> logsumexp, gold_log_prob;
  std::vector<bool> finite;
  std::vector<Bytes> memory;  ///< Of each row.
};
/// Does one tile.
using DoTopk = std::function<void(const TopkOp&)>;
/// All tiles, for rows `rows_together` at a time.
TopkAnswer topk_of(const TopkCase& data, const DoTopk& run, std::uint64_t rows_together);
/// A full softmax in f64 and a stable sort; of logits as `single` computes them in f32.
TopkAnswer full_softmax(const TopkCase& data);

/// Equal ids, log-probabilities within an f16 ulp, sums within 2e-6 relative to 1 + |sum|.
void expect_alike(const TopkAnswer& got, const TopkAnswer& wanted);
/// Cases that a device must get right: see topk_testing.cc.
std::vector<TopkCase> topk_cases();

}  // namespace librarian::gpu_exec
