#include "tests/gpu_exec/topk_testing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace librarian::gpu_exec {
namespace {

TopkAnswer answer_of(const TopkCase& data) {
  TopkAnswer answer;
  answer.ids.resize(data.rows * data.k);
  answer.log_prob.resize(data.rows * data.k);
  answer.logsumexp.resize(data.rows);
  answer.gold_log_prob.resize(data.rows);
  answer.finite.resize(data.rows);
  return answer;
}

/// Order of f16 numbers as integers.
int place_of(std::uint16_t half) { return (half & 0x8000U) != 0 ? -(half & 0x7FFF) : half; }

}  // namespace

TopkCase random_case(std::uint64_t rows, std::uint64_t vocabulary, std::uint32_t k,
                     std::uint64_t seed) {
  TestRandom random(seed);
  TopkCase data{rows, vocabulary, k, 1.0F, 0, random.vector(rows * vocabulary, 8.0F), {}};
  for (std::uint64_t row = 0; row < rows; ++row) {
    // The last row has none, as the end of a sample.
    data.gold_ids.push_back(
        row + 1 == rows ? -1 : static_cast<std::int32_t>(random.next() % vocabulary));
  }
  return data;
}

TopkAnswer topk_of(const TopkCase& data, const DoTopk& run, std::uint64_t rows_together) {
  const std::uint64_t row_bytes = topk_row_bytes(data.k);
  Bytes memory(data.rows * row_bytes);
  clear_topk(memory, data.k);
  for (std::uint64_t row = 0; row < data.rows; row += rows_together) {
    TopkOp op;
    op.rows = std::min(rows_together, data.rows - row);
    op.multiplier = data.multiplier;
    op.softcap = data.softcap;
    op.k = data.k;
    op.gold_ids = data.gold_ids.data() + row;
    op.memory = memory.data() + row * row_bytes;
    for (op.first_id = 0; op.first_id < data.vocabulary; op.first_id += kVocabularyTile) {
      op.count = std::min(kVocabularyTile, data.vocabulary - op.first_id);
      std::vector<float> logits;
      for (std::uint64_t r = row; r < row + op.rows; ++r) {
        const float* at = data.products.data() + r * data.vocabulary + op.first_id;
        logits.insert(logits.end(), at, at + op.count);
      }
      op.logits = logits.data();
      run(op);
    }
  }
  TopkAnswer answer = answer_of(data);
  for (std::uint64_t row = 0; row < data.rows; ++row) {
    const std::span<std::byte> own = std::span(memory).subspan(row * row_bytes, row_bytes);
    answer.finite[row] = finish_topk(own, data.k, data.gold_ids[row] >= 0,
                                     {std::span(answer.ids).subspan(row * data.k, data.k),
                                      std::span(answer.log_prob).subspan(row * data.k, data.k),
                                      &answer.logsumexp[row], &answer.gold_log_prob[row]});
    answer.memory.emplace_back(own.begin(), own.end());
  }
  return answer;
}

TopkAnswer full_softmax(const TopkCase& data) {
  TopkAnswer answer = answer_of(data);
  for (std::uint64_t row = 0; row < data.rows; ++row) {
    std::vector<float> logits(data.vocabulary);
    for (std::uint64_t i = 0; i < data.vocabulary; ++i) {
      logits[i] = logit_of(data.products[row * data.vocabulary + i], data.multiplier, data.softcap);
    }
    std::vector<std::int32_t> order(data.vocabulary);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
      return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
    });
    const double largest = logits[static_cast<std::size_t>(order[0])];
    double sum = 0;
    for (const float logit : logits) {
      sum += std::exp(logit - largest);
    }
    const auto logsumexp = static_cast<float>(largest + std::log(sum));
    answer.logsumexp[row] = logsumexp;
    for (std::uint32_t i = 0; i < data.k; ++i) {
      answer.ids[row * data.k + i] = order[i];
      answer.log_prob[row * data.k + i] =
          f32_to_f16(logits[static_cast<std::size_t>(order[i])] - logsumexp);
    }
    answer.gold_log_prob[row] =
        data.gold_ids[row] < 0 ? std::numeric_limits<float>::quiet_NaN()
                               : logits[static_cast<std::size_t>(data.gold_ids[row])] - logsumexp;
    answer.finite[row] = true;
  }
  return answer;
}

void expect_alike(const TopkAnswer& got, const TopkAnswer& wanted) {
  EXPECT_EQ(got.ids, wanted.ids);
  ASSERT_EQ(got.log_prob.size(), wanted.log_prob.size());
  for (std::size_t i = 0; i < got.log_prob.size(); ++i) {
    ASSERT_LE(std::abs(place_of(got.log_prob[i]) - place_of(wanted.log_prob[i])), 1) << i;
  }
  for (std::size_t row = 0; row < got.logsumexp.size(); ++row) {
    const float size = 1 + std::abs(wanted.logsumexp[row]);
    EXPECT_NEAR(got.logsumexp[row], wanted.logsumexp[row], 2e-6F * size) << row;
    if (std::isnan(wanted.gold_log_prob[row])) {
      EXPECT_TRUE(std::isnan(got.gold_log_prob[row])) << row;
    } else {
      EXPECT_NEAR(got.gold_log_prob[row], wanted.gold_log_prob[row], 2e-6F * size) << row;
    }
    EXPECT_EQ(got.finite[row], wanted.finite[row]) << row;
  }
}

std::vector<TopkCase> topk_cases() {
  std::vector<TopkCase> cases;
  for (const std::uint32_t k : {1U, 7U, 128U}) {
    cases.push_back(random_case(3, 2 * kVocabularyTile + 37, k, k));
  }
  // All of a small vocabulary, and a tile and one.
  cases.push_back(random_case(2, 300, 300, 11));
  cases.push_back(random_case(2, kVocabularyTile + 1, 200, 12));
  // Every logit twice and more, so that ties decide.
  TopkCase ties = random_case(2, kVocabularyTile + 500, 150, 13);
  for (float& value : ties.products) {
    value = std::floor(value);
  }
  cases.push_back(ties);
  TopkCase equal = random_case(2, kVocabularyTile + 64, 70, 14);
  std::fill(equal.products.begin(), equal.products.end(), 0.25F);
  cases.push_back(equal);
  // Descending: nothing enters behind the first k. Ascending: everything does.
  TopkCase falling = random_case(1, 2 * kVocabularyTile, 40, 15);
  std::sort(falling.products.begin(), falling.products.end(), std::greater<>());
  cases.push_back(falling);
  TopkCase rising = random_case(1, 2 * kVocabularyTile, 40, 16);
  std::sort(rising.products.begin(), rising.products.end());
  cases.push_back(rising);
  // A cap that flattens the largest, and a multiplier.
  TopkCase capped = random_case(2, kVocabularyTile + 99, 60, 17);
  capped.multiplier = 0.0625F;
  capped.softcap = 0.25F;
  cases.push_back(capped);
  // So far apart that all but a few exponentials are zero, and large enough to overflow unshifted.
  TopkCase far = random_case(2, kVocabularyTile + 5, 30, 18);
  for (float& value : far.products) {
    value = value * 1000 + 5000;
  }
  cases.push_back(far);
  return cases;
}

}  // namespace librarian::gpu_exec
