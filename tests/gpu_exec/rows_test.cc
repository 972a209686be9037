// Norm, rotation and addition: right, and the same bits for a row in any company.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/gpu_exec/reference.h"

namespace librarian::gpu_exec {
namespace {

constexpr NormSpec kRms{NormKind::rms, false, false, 1e-5F};

class RowsOnPath : public testing::TestWithParam<CpuIsa> {};

Bytes norm(Device& device, const Bytes& x, DType type, std::uint64_t width,
           const std::vector<float>& weight) {
  Bytes y(x.size());
  NormOp op;
  op.x = x.data();
  op.y = y.data();
  op.dtype = type;
  op.rows = x.size() / (width * dtype_bytes(type));
  op.width = width;
  op.weight = weight.data();
  op.epsilon = 1e-5F;
  device.norm(op);
  return y;
}

// Goal: the norm is the definition's, for widths around the vector length.
TEST_P(RowsOnPath, NormIsAccurate) {
  const auto device = cpu_device(GetParam(), 2);
  for (const std::uint64_t width : {1, 15, 16, 63, 64, 65, 2048, 5000}) {
    TestRandom random(width);
    const auto x = random.vector(width * 9, 20.0F);
    const auto weight = random.vector(width, 0.5F, 1.0F);
    const auto y = norm(*device, to_bytes(x, DType::f32), DType::f32, width, weight);
    EXPECT_LE(worst_row_error(to_floats(y, DType::f32),
                              reference_norm(to_rows(x, width), weight, nullptr, kRms)),
              1e-6)
        << width;
  }
}

TEST_P(RowsOnPath, NormGivesARowTheSameBitsInAnyCompany) {
  constexpr std::uint64_t kWidth = 333;
  TestRandom random(5);
  const auto weight = random.vector(kWidth, 0.5F, 1.0F);
  for (const DType type : {DType::bf16, DType::f16, DType::f32}) {
    const Bytes x = to_bytes(random.vector(kWidth * 777, 3.0F), type);
    const std::size_t row_bytes = kWidth * dtype_bytes(type);
    const Bytes whole = norm(*cpu_device(GetParam(), 2), x, type, kWidth, weight);
    for (const std::size_t row : {0, 1, 98, 500, 776}) {
      const auto begin = static_cast<std::ptrdiff_t>(row * row_bytes);
      const auto end = begin + static_cast<std::ptrdiff_t>(row_bytes);
      const Bytes alone = norm(*cpu_device(GetParam(), 1),
                               Bytes(x.begin() + begin, x.begin() + end), type, kWidth, weight);
      EXPECT_EQ(alone, Bytes(whole.begin() + begin, whole.begin() + end)) << row;
    }
  }
}

Bytes rotate(Device& device, Bytes x, DType type, const AttentionSpec& spec, std::uint32_t heads,
             const std::vector<float>* weight, const std::vector<Segment>& segments,
             std::uint64_t first_position) {
  std::uint64_t rows = 0;
  std::uint64_t table_rows = 0;
  for (const Segment& segment : segments) {
    rows += segment.rows;
    table_rows = std::max(table_rows, segment.position + segment.rows - first_position);
  }
  std::vector<float> table(rope_table_floats(table_rows, spec.rope.rotary_dim));
  device.rope_table({spec.rope.inverse_frequency, spec.rope.cos_sin_multiplier, first_position,
                     table_rows, table.data()},
                    nullptr);
  RotateOp op;
  op.x = x.data();
  op.dtype = type;
  op.rows = rows;
  op.heads = heads;
  op.head_dim = spec.head_dim;
  op.rotary_dim = spec.rope.rotary_dim;
  op.norm_weight = weight == nullptr ? nullptr : weight->data();
  op.epsilon = 1e-5F;
  op.segments = segments;
  op.table = table.data();
  op.first_position = first_position;
  device.rotate(op, nullptr);
  return x;
}

struct HeadShape {
  std::uint32_t head_dim, rotary_dim;
};

// Goal: heads are normalised and turned as defined, also where only a part of a head turns.
// Method: double precision, head sizes around the vector length, with and without norm.
TEST_P(RowsOnPath, RotationIsAccurate) {
  const auto device = cpu_device(GetParam(), 2);
  for (const HeadShape shape : {HeadShape{2, 2},
                                {16, 16},
                                {20, 12},
                                {24, 24},
                                {64, 64},
                                {80, 32},
                                {128, 128},
                                {256, 64},
                                {256, 256},
                                {40, 0}}) {
    AttentionSpec spec;
    spec.head_dim = shape.head_dim;
    spec.rope = default_rope(shape.rotary_dim);
    spec.rope.cos_sin_multiplier = 1.25F;
    TestRandom random(shape.head_dim);
    const auto x = random.vector(std::size_t{3} * shape.head_dim * 70, 2.0F);
    const auto weight = random.vector(shape.head_dim, 0.5F, 1.0F);
    for (const std::vector<float>* head_norm :
         {static_cast<const std::vector<float>*>(nullptr), &weight}) {
      const Bytes y = rotate(*device, to_bytes(x, DType::f32), DType::f32, spec, 3, head_norm,
                             segments_of({70}), 0);
      const Rows expected =
          reference_rotate(to_rows(x, std::size_t{3} * shape.head_dim), 3, spec, head_norm, kRms);
      EXPECT_LE(worst_row_error(to_floats(y, DType::f32), expected), 1e-6)
          << shape.head_dim << "/" << shape.rotary_dim << (head_norm != nullptr ? " norm" : "");
    }
  }
}

// Goal: a row's rotation depends on its position only.
// Method: a sample in one run, in two tiles, and among others (some empty).
TEST_P(RowsOnPath, RotationFollowsThePosition) {
  AttentionSpec spec;
  spec.head_dim = 20;
  spec.rope = default_rope(12);
  TestRandom random(4);
  const Bytes x = to_bytes(random.vector(std::size_t{400} * 60, 2.0F), DType::bf16);
  const Bytes whole =
      rotate(*cpu_device(GetParam(), 2), x, DType::bf16, spec, 3, nullptr, segments_of({400}), 0);
  const auto head = x.begin() + 150 * 120;
  const Bytes tail = rotate(*cpu_device(GetParam(), 1), Bytes(head, x.end()), DType::bf16, spec, 3,
                            nullptr, {{0, 250, 150}}, 150);
  EXPECT_EQ(tail, Bytes(whole.begin() + 150 * 120, whole.end()));

  Bytes twice = x;
  twice.insert(twice.end(), x.begin(), x.end());
  const Bytes both = rotate(*cpu_device(GetParam(), 2), twice, DType::bf16, spec, 3, nullptr,
                            segments_of({0, 400, 0, 0, 400, 0}), 0);
  EXPECT_EQ(Bytes(both.begin(), both.begin() + 400 * 120), whole);
  EXPECT_EQ(Bytes(both.begin() + 400 * 120, both.end()), whole);
}

// Goal: angles are transformers': f32 products of position and frequency, at long positions too.
// Method: position 100,001, where an f64 product would give another angle.
TEST_P(RowsOnPath, RopeAnglesAreRoundedToF32First) {
  RopeSpec rope = default_rope(64);
  std::vector<float> table(rope_table_floats(1, 64));
  cpu_device(GetParam(), 1)
      ->rope_table({rope.inverse_frequency, 1.0F, 100001, 1, table.data()}, nullptr);
  bool differs = false;
  for (std::size_t i = 0; i < 32; ++i) {
    const float angle = 100001.0F * rope.inverse_frequency[i];
    EXPECT_EQ(table[i], static_cast<float>(std::cos(static_cast<double>(angle)))) << i;
    EXPECT_EQ(table[32 + i], static_cast<float>(std::sin(static_cast<double>(angle)))) << i;
    differs = differs ||
              table[i] != static_cast<float>(
                              std::cos(100001.0 * static_cast<double>(rope.inverse_frequency[i])));
  }
  EXPECT_TRUE(differs) << "the position was too small to tell the two apart";
}

TEST_P(RowsOnPath, AddRoundsOnceAndTouchesNothingElse) {
  const auto device = cpu_device(GetParam(), 2);
  for (const std::size_t count : {1, 15, 16, 17, 100003}) {
    for (const DType type : {DType::bf16, DType::f16, DType::f32}) {
      TestRandom random(count);
      const auto a = rounded(random.vector(count, 2.0F), type);
      const auto b = rounded(random.vector(count, 2.0F), type);
      std::vector<float> sum(count);
      for (std::size_t i = 0; i < count; ++i) {
        sum[i] = a[i] + b[i];
      }
      Bytes x = to_bytes(a, type);
      x.push_back(std::byte{0x77});
      const Bytes change = to_bytes(b, type);
      device->add({x.data(), change.data(), nullptr, type, count, 1.0F});
      EXPECT_EQ(x.back(), std::byte{0x77});
      x.pop_back();
      EXPECT_EQ(x, to_bytes(sum, type)) << count << dtype_name(type);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, RowsOnPath, testing::ValuesIn(machine_isas()),
                         [](const auto& isa) { return std::string(cpu_isa_name(isa.param)); });

}  // namespace
}  // namespace librarian::gpu_exec
