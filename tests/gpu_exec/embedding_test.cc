// What is added to a word's row before layer 0, and what is done with the sum.
#include "gpu_exec/embedding.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/gpu_exec/exec_testing.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::uint32_t kHidden = 37;
constexpr std::uint64_t kRowsMax = 5;
const float kMultiplier = std::sqrt(48.0F);

std::vector<float> finish(EmbeddingStage& stage, const std::vector<float>& word,
                          std::uint64_t position, DType dtype = DType::f32) {
  const Bytes in = to_bytes(word, DType::bf16);
  Bytes out(kHidden * dtype_bytes(dtype));
  stage.finish(DType::bf16, in, position, out);
  return to_floats(out, dtype);
}

std::vector<float> word_row() { return rounded(TestRandom(1).vector(kHidden, 2.0F), DType::bf16); }

// Goal: norm(word * multiplier + position + type), with the row of the position behind the offset.
// Method: double precision; tables longer than the longest sample, of which only its rows are kept.
TEST(EmbeddingStage, AddsAllPartsAndNormalises) {
  for (const NormKind kind : {NormKind::layer, NormKind::rms}) {
    ModelSpec model;
    model.hidden_size = kHidden;
    model.norm = {kind, true, false, 1e-5F};
    model.embedding = {1.5F, false, 9, 2, 3, true};
    TestRandom random(7);
    const auto positions = rounded(random.vector(std::size_t{9} * kHidden, 1.0F), DType::f16);
    const auto types = random.vector(std::size_t{3} * kHidden, 1.0F);
    const auto weight = random.vector(kHidden, 0.5F, 1.0F);
    const auto bias = random.vector(kHidden, 0.5F);
    EmbeddingStage stage(model, DType::f32, kRowsMax);
    ASSERT_TRUE(
        stage.load(WeightRole::position_embedding, DType::f16, to_bytes(positions, DType::f16)));
    ASSERT_TRUE(stage.load(WeightRole::type_embedding, DType::f32, to_bytes(types, DType::f32)));
    ASSERT_TRUE(stage.load(WeightRole::embedding_norm, DType::f32, to_bytes(weight, DType::f32)));
    ASSERT_TRUE(
        stage.load(WeightRole::embedding_norm_bias, DType::f32, to_bytes(bias, DType::f32)));
    const auto word = word_row();
    for (std::uint64_t position = 0; position < kRowsMax; ++position) {
      std::vector<double> sum(kHidden);
      double mean = 0;
      for (std::uint32_t i = 0; i < kHidden; ++i) {
        sum[i] = 1.5 * word[i] + positions[(position + 2) * kHidden + i] + types[i];
        mean += kind == NormKind::layer ? sum[i] / kHidden : 0;
      }
      double squares = 0;
      for (const double value : sum) {
        squares += (value - mean) * (value - mean);
      }
      const auto row = finish(stage, word, position);
      for (std::uint32_t i = 0; i < kHidden; ++i) {
        const double expected =
            (sum[i] - mean) / std::sqrt(squares / kHidden + 1e-5) * weight[i] + bias[i];
        EXPECT_NEAR(row[i], expected, 2e-6) << position << "," << i;
      }
    }
  }
}

TEST(EmbeddingStage, LeavesAPlainRowAsItIs) {
  ModelSpec model;
  model.hidden_size = kHidden;
  EmbeddingStage stage(model, DType::bf16, kRowsMax);
  EXPECT_EQ(finish(stage, word_row(), 3, DType::bf16), word_row());
}

// Goal: a multiplier that the model's code keeps in the compute type is rounded to it, others not.
// Method: sqrt(48) is another number in bf16, and so is 129 times either.
TEST(EmbeddingStage, RoundsTheMultiplierOnlyWhereTheModelDoes) {
  for (const bool in_dtype : {true, false}) {
    ModelSpec model;
    model.hidden_size = kHidden;
    model.embedding.multiplier = kMultiplier;
    model.embedding.multiplier_in_dtype = in_dtype;
    EmbeddingStage wide(model, DType::f32, kRowsMax);
    EXPECT_EQ(finish(wide, std::vector<float>(kHidden, 1.0F), 0)[0], kMultiplier);
    EmbeddingStage narrow(model, DType::bf16, kRowsMax);
    const std::vector<float> word(kHidden, 129.0F);
    const float multiplier = in_dtype ? rounded({kMultiplier}, DType::bf16)[0] : kMultiplier;
    EXPECT_EQ(finish(narrow, word, 0, DType::bf16)[0],
              rounded({129.0F * multiplier}, DType::bf16)[0]);
  }
  EXPECT_NE(rounded({129.0F * rounded({kMultiplier}, DType::bf16)[0]}, DType::bf16),
            rounded({129.0F * kMultiplier}, DType::bf16))
      << "the example cannot tell the two apart";
}

TEST(EmbeddingStage, RefusesTensorsThatDoNotFit) {
  ModelSpec model;
  model.hidden_size = kHidden;
  model.embedding.positions = 4;
  EmbeddingStage stage(model, DType::f32, kRowsMax);
  EXPECT_FALSE(stage.load(WeightRole::position_embedding, DType::bf16, Bytes(3 * kHidden * 2)));
  EXPECT_TRUE(stage.load(WeightRole::position_embedding, DType::bf16, Bytes(4 * kHidden * 2)));
}

}  // namespace
}  // namespace librarian::gpu_exec
