// Attention: windows, grouped heads, tiles of long samples, and values that are not finite.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/gpu_exec/reference.h"

namespace librarian::gpu_exec {
namespace {

AttentionSpec spec_of(std::uint32_t heads, std::uint32_t kv_heads, std::uint32_t head_dim,
                      std::uint32_t window) {
  AttentionSpec spec;
  spec.heads = heads;
  spec.kv_heads = kv_heads;
  spec.head_dim = head_dim;
  spec.scale = 1.7F / std::sqrt(static_cast<float>(head_dim));
  spec.window = window;
  return spec;
}

/// q, k, v of one sample.
struct Sample {
  std::vector<float> q, k, v;
};
Sample make_sample(const AttentionSpec& spec, std::uint64_t rows, DType type) {
  TestRandom random(11);
  const std::uint64_t d = spec.head_dim;
  return {rounded(random.vector(rows * spec.heads * d, 3.0F), type),
          rounded(random.vector(rows * spec.kv_heads * d, 1.0F), type),
          rounded(random.vector(rows * spec.kv_heads * d, 1.0F), type)};
}

/// Runs tiles of the sample in order, as blocks of their own: rows of k and v after a tile are
/// not there yet, and poisoned to show it.
std::vector<float> attend(CpuIsa isa, int threads, const AttentionSpec& spec, const Sample& sample,
                          DType type, const std::vector<std::uint64_t>& tiles) {
  const auto device = cpu_device(isa, threads);
  const DeviceMemory scratch =
      aligned_memory(device->scratch_bytes({spec.head_dim, spec.heads / spec.kv_heads}));
  const Bytes k = to_bytes(sample.k, type);
  const Bytes v = to_bytes(sample.v, type);
  Bytes q = to_bytes(sample.q, type);
  const std::uint64_t q_row = std::uint64_t{spec.heads} * spec.head_dim * dtype_bytes(type);
  const std::uint64_t kv_row = std::uint64_t{spec.kv_heads} * spec.head_dim * dtype_bytes(type);
  std::uint64_t position = 0;
  for (const std::uint64_t rows : tiles) {
    Bytes keys(k.size(), std::byte{0xFF});
    Bytes values(v.size(), std::byte{0xFF});
    std::memcpy(keys.data(), k.data(), (position + rows) * kv_row);
    std::memcpy(values.data(), v.data(), (position + rows) * kv_row);
    const Segment segment{0, rows, position};
    AttentionOp op;
    op.q = q.data() + position * q_row;
    op.k = keys.data();
    op.v = values.data();
    op.dtype = type;
    op.heads = spec.heads;
    op.kv_heads = spec.kv_heads;
    op.head_dim = spec.head_dim;
    op.scale = spec.scale;
    op.window = spec.window;
    op.segments = {&segment, 1};
    device->attention(op, scratch.get(), {});
    position += rows;
  }
  return to_floats(q, type);
}

class AttentionOnPath : public testing::TestWithParam<CpuIsa> {};

const std::vector<AttentionSpec> kSpecs = {
    spec_of(4, 4, 16, 0),  spec_of(6, 2, 20, 0),    spec_of(8, 1, 128, 0), spec_of(14, 2, 64, 0),
    spec_of(6, 2, 20, 1),  spec_of(6, 2, 20, 8),    spec_of(6, 2, 20, 64), spec_of(4, 2, 24, 100),
    spec_of(2, 1, 256, 0), spec_of(40, 1, 16, 129),
};

// Goal: the output is that of the definition: scaled, causal, windowed, grouped.
// Method: double precision, with samples shorter than, as long as and longer than a key chunk.
TEST_P(AttentionOnPath, IsAccurate) {
  for (const AttentionSpec& spec : kSpecs) {
    for (const std::uint64_t rows : {1, 7, 64, 65, 300}) {
      const Sample sample = make_sample(spec, rows, DType::f32);
      const std::size_t kv_width = std::size_t{spec.kv_heads} * spec.head_dim;
      const Rows expected =
          reference_attention(to_rows(sample.q, std::size_t{spec.heads} * spec.head_dim),
                              to_rows(sample.k, kv_width), to_rows(sample.v, kv_width), spec);
      const auto out = attend(GetParam(), 2, spec, sample, DType::f32, {rows});
      EXPECT_LE(worst_row_error(out, expected), 5e-6)
          << spec.heads << "/" << spec.kv_heads << " window " << spec.window << " rows " << rows;
    }
  }
}

// Goal: however a sample is cut into tiles, each row has the same bits.
// Method: one tile against cuts at, before and after key chunks, one row at a time, with one and
// two threads; rows of k and v after a tile hold NaN patterns.
TEST_P(AttentionOnPath, GivesTheSameBitsForAnyTiles) {
  const std::vector<std::vector<std::uint64_t>> cuts = {
      {64, 64, 64, 64, 44}, {63, 65, 1, 127, 44}, {1, 299}, {299, 1}, {100, 100, 100}};
  for (const DType type : {DType::bf16, DType::f16, DType::f32}) {
    for (const AttentionSpec& spec : kSpecs) {
      const Sample sample = make_sample(spec, 300, type);
      const auto whole = to_bytes(attend(GetParam(), 1, spec, sample, type, {300}), type);
      for (const auto& tiles : cuts) {
        EXPECT_EQ(to_bytes(attend(GetParam(), 2, spec, sample, type, tiles), type), whole)
            << spec.heads << "/" << spec.kv_heads << " window " << spec.window << " first tile "
            << tiles[0] << " " << dtype_name(type);
      }
    }
  }
}

// Goal: a value that a row does not see cannot change it, not even an infinite one.
// Method: infinity, NaN and huge numbers at one position; rows before it, and rows whose window
// has passed it, keep their bits, and rows that see it do not.
TEST_P(AttentionOnPath, IgnoresWhatARowDoesNotSee) {
  const AttentionSpec spec = spec_of(6, 2, 20, 50);
  const Sample sample = make_sample(spec, 200, DType::f32);
  const auto clean = attend(GetParam(), 1, spec, sample, DType::f32, {200});
  const std::size_t width = std::size_t{spec.heads} * spec.head_dim;
  for (const float poison : {std::numeric_limits<float>::infinity(), std::nanf(""), -3e38F}) {
    Sample dirty = sample;
    for (std::size_t i = 0; i < 40; ++i) {
      dirty.v[100 * 40 + i] = poison;
      dirty.k[100 * 40 + i] = poison;
    }
    const auto out = attend(GetParam(), 1, spec, dirty, DType::f32, {200});
    for (std::size_t row = 0; row < 200; ++row) {
      const bool sees = row >= 100 && row < 150;
      const bool same =
          std::memcmp(&out[row * width], &clean[row * width], width * sizeof(float)) == 0;
      EXPECT_EQ(same, !sees) << "row " << row << " poison " << poison;
    }
  }
}

// Goal: nor does the sign of a zero show what a row does not see.
// Method: row 65 ends with -0 from underflows, and so do all after it (nothing pads the chunk):
// only the sign of the unseen value at 66 could tell -0 from +0.
TEST_P(AttentionOnPath, HidesTheSignOfZeros) {
  AttentionSpec spec = spec_of(1, 1, 2, 0);
  spec.scale = 1.0F;
  Sample sample;
  sample.q.assign(std::size_t{128} * 2, 1.0F);
  sample.k.assign(std::size_t{128} * 2, 0.0F);
  sample.v.assign(std::size_t{128} * 2, -1e-40F);
  for (std::size_t i = 0; i < 2; ++i) {
    sample.k[64 * 2 + i] = 50.0F;  // Shrinks the sum of the first chunk to -0.
    sample.k[65 * 2 + i] = 49.5F;
    sample.v[64 * 2 + i] = 0.0F;
    sample.v[65 * 2 + i] = -1e-45F;  // Times e^-1: -0.
  }
  Sample other = sample;
  other.v[66 * 2] = other.v[66 * 2 + 1] = 1.0F;
  sample.v[66 * 2] = sample.v[66 * 2 + 1] = -1.0F;
  const auto a = attend(GetParam(), 1, spec, sample, DType::f32, {128});
  const auto b = attend(GetParam(), 1, spec, other, DType::f32, {128});
  ASSERT_EQ(a[65 * 2], 0.0F);
  EXPECT_EQ(std::signbit(a[65 * 2]), std::signbit(b[65 * 2]));
}

// Goal: samples of one block do not see each other.
// Method: a block of three samples against each alone.
TEST_P(AttentionOnPath, KeepsSamplesApart) {
  const AttentionSpec spec = spec_of(6, 2, 20, 0);
  const Sample all = make_sample(spec, 150, DType::bf16);
  const auto device = cpu_device(GetParam(), 2);
  const DeviceMemory scratch = aligned_memory(device->scratch_bytes({20, 3}));
  Bytes q = to_bytes(all.q, DType::bf16);
  const Bytes k = to_bytes(all.k, DType::bf16);
  const Bytes v = to_bytes(all.v, DType::bf16);
  const std::vector<std::uint64_t> lengths = {70, 1, 79};
  const std::vector<Segment> segments = segments_of(lengths);
  AttentionOp op;
  op.q = q.data();
  op.k = k.data();
  op.v = v.data();
  op.heads = 6;
  op.kv_heads = 2;
  op.head_dim = 20;
  op.scale = spec.scale;
  op.segments = segments;
  device->attention(op, scratch.get(), {});
  const auto together = to_floats(q, DType::bf16);
  for (const Segment& segment : segments) {
    const auto cut = [&](const std::vector<float>& values, std::size_t width) {
      const auto begin = values.begin() + static_cast<std::ptrdiff_t>(segment.row_begin * width);
      return std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(segment.rows * width));
    };
    const Sample alone = {cut(all.q, 120), cut(all.k, 40), cut(all.v, 40)};
    EXPECT_EQ(attend(GetParam(), 1, spec, alone, DType::bf16, {segment.rows}), cut(together, 120));
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, AttentionOnPath, testing::ValuesIn(machine_isas()),
                         [](const auto& isa) { return std::string(cpu_isa_name(isa.param)); });

}  // namespace
}  // namespace librarian::gpu_exec
