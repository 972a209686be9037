// Attention: what each row sees and how it is weighted, the same bits however rows are grouped,
// and values that are not finite.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

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

/// Every combination of the flags, for odd sizes.
std::vector<AttentionSpec> flag_specs() {
  std::vector<AttentionSpec> specs;
  for (unsigned int flags = 0; flags < 64; ++flags) {
    AttentionSpec spec = spec_of(6, 2, 20, (flags & 1U) != 0 ? 40 : 0);
    spec.causal = (flags & 2U) == 0;
    spec.chunk = (flags & 4U) != 0 ? 50 : 0;
    spec.softcap = (flags & 8U) != 0 ? 2.5F : 0;
    spec.sinks = (flags & 16U) != 0;
    spec.alibi = (flags & 32U) != 0;
    specs.push_back(spec);
  }
  return specs;
}

/// Sizes around those of the kernels, and each flag once or twice.
std::vector<AttentionSpec> various_specs() {
  std::vector<AttentionSpec> specs = {
      spec_of(4, 4, 16, 0),    spec_of(6, 2, 20, 0),   spec_of(8, 1, 128, 0),
      spec_of(14, 2, 64, 0),   spec_of(6, 2, 20, 1),   spec_of(6, 2, 20, 8),
      spec_of(6, 2, 20, 126),  spec_of(4, 2, 24, 100), spec_of(2, 1, 256, 0),
      spec_of(40, 1, 16, 129), spec_of(5, 5, 1, 0),    spec_of(3, 3, 65, 0)};
  const AttentionSpec base = spec_of(6, 2, 20, 0);
  for (int i = 0; i < 6; ++i) {
    specs.push_back(base);
  }
  specs[12].chunk = 1;
  specs[13].chunk = 100;
  specs[14].softcap = 0.5F;
  specs[15].sinks = true;
  specs[16].alibi = true;
  specs[17] = flag_specs()[63];
  specs[17].causal = true;
  return specs;
}

std::string describe(const AttentionSpec& spec) {
  return std::to_string(spec.heads) + "/" + std::to_string(spec.kv_heads) + "x" +
         std::to_string(spec.head_dim) + (spec.causal ? "" : " two-way") + " window " +
         std::to_string(spec.window) + " chunk " + std::to_string(spec.chunk) + " cap " +
         std::to_string(spec.softcap) + (spec.sinks ? " sinks" : "") + (spec.alibi ? " alibi" : "");
}

/// q, k, v of one sample, and the heads' sinks.
struct Sample {
  std::vector<float> q, k, v, sinks;
};
Sample make_sample(const AttentionSpec& spec, std::uint64_t rows, DType type) {
  TestRandom random(11);
  const std::uint64_t d = spec.head_dim;
  Sample sample{rounded(random.vector(rows * spec.heads * d, 3.0F), type),
                rounded(random.vector(rows * spec.kv_heads * d, 1.0F), type),
                rounded(random.vector(rows * spec.kv_heads * d, 1.0F), type),
                random.vector(spec.heads, 2.0F, 1.0F)};
  sample.sinks[0] = -std::numeric_limits<float>::infinity();
  return sample;
}

/// An operation and what it reads and writes.
struct Call {
  Bytes q, k, v;
  std::vector<float> sinks, slopes;
  AttentionOp op;
};
Call make_call(const AttentionSpec& spec, const Sample& sample, DType type) {
  Call call{to_bytes(sample.q, type), to_bytes(sample.k, type),
            to_bytes(sample.v, type), sample.sinks,
            alibi_slopes(spec.heads), {}};
  call.op.q = call.q.data();
  call.op.k = call.k.data();
  call.op.v = call.v.data();
  call.op.dtype = type;
  call.op.heads = spec.heads;
  call.op.kv_heads = spec.kv_heads;
  call.op.head_dim = spec.head_dim;
  call.op.scale = spec.scale;
  call.op.causal = spec.causal;
  call.op.window = spec.window;
  call.op.chunk = spec.chunk;
  call.op.softcap = spec.softcap;
  call.op.sinks = spec.sinks ? call.sinks.data() : nullptr;
  call.op.slopes = spec.alibi ? call.slopes.data() : nullptr;
  return call;
}

/// Runs the operation with exactly the scratch that it asks for.
void run(CpuIsa isa, int threads, AttentionOp op, std::span<const Segment> segments) {
  const auto device = cpu_device(isa, threads);
  const DeviceMemory scratch =
      aligned_memory(device->scratch_bytes({op.head_dim, op.heads / op.kv_heads}));
  op.segments = segments;
  device->attention(op, scratch.get(), {});
}

/// Several samples in one block.
Bytes attend_block(CpuIsa isa, int threads, const AttentionSpec& spec, const Sample& rows,
                   DType type, const std::vector<std::uint64_t>& lengths) {
  Call call = make_call(spec, rows, type);
  run(isa, threads, call.op, segments_of(lengths));
  return call.q;
}

/// One sample in one block.
Bytes attend(CpuIsa isa, const AttentionSpec& spec, const Sample& sample, DType type) {
  const std::uint64_t width = std::uint64_t{spec.heads} * spec.head_dim;
  return attend_block(isa, 1, spec, sample, type, {sample.q.size() / width});
}

/// Runs tiles of the sample in order, as blocks of their own: rows of k and v after a tile are
/// not there yet, and poisoned to show it.
Bytes attend_tiles(CpuIsa isa, int threads, const AttentionSpec& spec, const Sample& sample,
                   DType type, const std::vector<std::uint64_t>& tiles) {
  Call call = make_call(spec, sample, type);
  const std::uint64_t q_row = std::uint64_t{spec.heads} * spec.head_dim * dtype_bytes(type);
  const std::uint64_t kv_row = std::uint64_t{spec.kv_heads} * spec.head_dim * dtype_bytes(type);
  std::uint64_t position = 0;
  for (const std::uint64_t rows : tiles) {
    Bytes keys(call.k.size(), std::byte{0xFF});
    Bytes values(call.v.size(), std::byte{0xFF});
    std::memcpy(keys.data(), call.k.data(), (position + rows) * kv_row);
    std::memcpy(values.data(), call.v.data(), (position + rows) * kv_row);
    AttentionOp op = call.op;
    op.q = call.q.data() + position * q_row;
    op.k = keys.data();
    op.v = values.data();
    const Segment segment{0, rows, position, 0};
    run(isa, threads, op, {&segment, 1});
    position += rows;
  }
  return call.q;
}

Rows expected_of(const AttentionSpec& spec, const Sample& sample) {
  const std::size_t kv_width = std::size_t{spec.kv_heads} * spec.head_dim;
  return reference_attention(to_rows(sample.q, std::size_t{spec.heads} * spec.head_dim),
                             to_rows(sample.k, kv_width), to_rows(sample.v, kv_width), spec,
                             spec.sinks ? &sample.sinks : nullptr);
}

class AttentionOnPath : public testing::TestWithParam<CpuIsa> {};

// Goal: the output is that of the definition, for all head sizes and groups.
// Method: double precision, with samples shorter than, as long as and longer than a key chunk.
TEST_P(AttentionOnPath, IsAccurate) {
  for (const AttentionSpec& spec : various_specs()) {
    for (const std::uint64_t rows : {1, 7, 126, 129, 200}) {
      const Sample sample = make_sample(spec, rows, DType::f32);
      const auto out = to_floats(attend(GetParam(), spec, sample, DType::f32), DType::f32);
      EXPECT_LE(worst_row_error(out, expected_of(spec, sample)), 5e-6)
          << describe(spec) << " rows " << rows;
    }
  }
}

// Goal: each flag does what it says, alone and with every other.
// Method: all 64 combinations in double precision; 16-bit types to within their rounding.
TEST_P(AttentionOnPath, CombinesEveryFlag) {
  for (const AttentionSpec& spec : flag_specs()) {
    const Sample sample = make_sample(spec, 140, DType::bf16);
    const Rows expected = expected_of(spec, sample);
    for (const DType type : {DType::f32, DType::bf16, DType::f16}) {
      const auto out = to_floats(attend(GetParam(), spec, sample, type), type);
      const double tolerance = type == DType::f32 ? 5e-6 : (type == DType::f16 ? 0x1p-11 : 0x1p-8);
      EXPECT_LE(worst_row_error(out, expected), tolerance)
          << describe(spec) << " " << dtype_name(type);
    }
  }
}

// Goal: scores may be far apart, grow along the keys and fall again: nothing overflows, and what
// counts little is not lost before its time.
// Method: runs of keys 100 apart in score, upwards and downwards; at 1000, f32 has steps of 6e-5.
TEST_P(AttentionOnPath, StandsScoresFarApart) {
  AttentionSpec spec = spec_of(1, 1, 2, 0);
  spec.scale = 1.0F;
  Sample sample = make_sample(spec, 400, DType::f32);
  for (std::size_t j = 0; j < 400; ++j) {
    sample.q[j * 2] = (j % 2 == 0 ? 1.0F : -1.0F);
    sample.k[j * 2] = static_cast<float>(j / 40) * 100.0F + static_cast<float>(j % 40) * 0.01F;
  }
  const auto out = to_floats(attend(GetParam(), spec, sample, DType::f32), DType::f32);
  EXPECT_LE(worst_row_error(out, expected_of(spec, sample)), 5e-4);
}

// Goal: a sink of minus infinity is none, and one above all scores takes everything.
TEST_P(AttentionOnPath, LetsSinksTakeNothingOrAll) {
  const AttentionSpec without = spec_of(6, 2, 20, 0);
  AttentionSpec with = without;
  with.sinks = true;
  Sample sample = make_sample(with, 140, DType::f32);
  sample.sinks.assign(6, -std::numeric_limits<float>::infinity());
  EXPECT_EQ(attend(GetParam(), with, sample, DType::f32),
            attend(GetParam(), without, sample, DType::f32));
  sample.sinks.assign(6, 1e30F);
  EXPECT_EQ(to_floats(attend(GetParam(), with, sample, DType::f32), DType::f32),
            std::vector<float>(sample.q.size(), 0.0F));
}

// Goal: however a sample is cut into tiles, each row has the same bits.
// Method: one tile against cuts at, before and after key chunks, with one and two threads; rows
// of k and v after a tile hold NaN patterns.
TEST_P(AttentionOnPath, GivesTheSameBitsForAnyTiles) {
  const std::vector<std::vector<std::uint64_t>> cuts = {
      {126, 126, 48}, {63, 65, 1, 127, 44}, {1, 299}, {299, 1}, {100, 100, 100}};
  for (const DType type : {DType::bf16, DType::f16, DType::f32}) {
    for (const AttentionSpec& spec : various_specs()) {
      const Sample sample = make_sample(spec, 300, type);
      const Bytes whole = attend(GetParam(), spec, sample, type);
      for (const auto& tiles : cuts) {
        EXPECT_EQ(attend_tiles(GetParam(), 2, spec, sample, type, tiles), whole)
            << describe(spec) << " first tile " << tiles[0] << " " << dtype_name(type);
      }
    }
  }
}

// Goal: a row's bits do not depend on where in the block it is, on its neighbours or on threads.
// Method: samples in one block against each alone, for every combination of flags.
TEST_P(AttentionOnPath, KeepsSamplesApart) {
  const std::vector<std::uint64_t> lengths = {70, 1, 130, 5, 0, 31};
  for (const AttentionSpec& spec : flag_specs()) {
    const DType type = spec.window != 0 ? DType::f32 : (spec.sinks ? DType::f16 : DType::bf16);
    const Sample all = make_sample(spec, std::reduce(lengths.begin(), lengths.end()), type);
    Bytes alone;
    for (const Segment& segment : segments_of(lengths)) {
      const auto cut = [&](const std::vector<float>& values, std::size_t width) {
        const auto begin = values.begin() + static_cast<std::ptrdiff_t>(segment.row_begin * width);
        return std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(segment.rows * width));
      };
      if (segment.rows != 0) {
        const Bytes out = attend(
            GetParam(), spec, {cut(all.q, 120), cut(all.k, 40), cut(all.v, 40), all.sinks}, type);
        alone.insert(alone.end(), out.begin(), out.end());
      }
    }
    for (const int threads : {1, 2, 3, 4}) {
      EXPECT_EQ(attend_block(GetParam(), threads, spec, all, type, lengths), alone)
          << describe(spec) << " threads " << threads;
    }
  }
}

// Goal: a value that a row does not see cannot change it, not even an infinite one.
// Method: infinity, NaN and huge numbers at one position; exactly the rows that see it change,
// and those too have the same bits in any tiles.
TEST_P(AttentionOnPath, IgnoresWhatARowDoesNotSee) {
  for (const AttentionSpec& spec : flag_specs()) {
    const Sample sample = make_sample(spec, 200, DType::f32);
    const auto clean = to_floats(attend(GetParam(), spec, sample, DType::f32), DType::f32);
    const std::size_t width = std::size_t{spec.heads} * spec.head_dim;
    for (const float poison : {std::numeric_limits<float>::infinity(), std::nanf(""), -3e38F}) {
      Sample dirty = sample;
      for (std::size_t i = 0; i < 40; ++i) {
        dirty.v[100 * 40 + i] = poison;
        dirty.k[100 * 40 + i] = poison;
      }
      const Bytes bytes = attend(GetParam(), spec, dirty, DType::f32);
      const auto out = to_floats(bytes, DType::f32);
      for (std::size_t row = 0; row < 200; ++row) {
        const bool same =
            std::memcmp(&out[row * width], &clean[row * width], width * sizeof(float)) == 0;
        EXPECT_EQ(same, !reference_sees(spec, row, 100))
            << describe(spec) << " row " << row << " poison " << poison;
      }
      if (spec.causal) {
        EXPECT_EQ(attend_tiles(GetParam(), 1, spec, dirty, DType::f32, {90, 13, 97}), bytes)
            << describe(spec) << " poison " << poison;
      }
    }
  }
}

// Goal: nor does the sign of a zero show what a row does not see.
// Method: at row 260 every sum ends at -0 from underflows; only the sign of the unseen value at
// 261, in the same panel, could make it +0.
TEST_P(AttentionOnPath, HidesTheSignOfZeros) {
  AttentionSpec spec = spec_of(1, 1, 2, 0);
  spec.scale = 1.0F;
  Sample sample = make_sample(spec, 300, DType::f32);
  sample.q.assign(sample.q.size(), 1.0F);
  sample.k.assign(sample.k.size(), 0.0F);
  sample.v.assign(sample.v.size(), -1e-40F);
  for (std::size_t i = 256; i < 512; ++i) {
    sample.k[i] = 50.0F;  // Shrinks the sum of the chunk before to -0.
    sample.v[i] = -0.0F;
  }
  for (std::size_t i = 504; i < 600; ++i) {
    sample.k[i] = 49.5F;
    sample.v[i] = -1e-45F;  // Times e^-1: -0.
  }
  Sample other = sample;
  other.v[261 * 2] = other.v[261 * 2 + 1] = 1.0F;
  sample.v[261 * 2] = sample.v[261 * 2 + 1] = -1.0F;
  const auto a = to_floats(attend(GetParam(), spec, sample, DType::f32), DType::f32);
  const auto b = to_floats(attend(GetParam(), spec, other, DType::f32), DType::f32);
  ASSERT_EQ(a[260 * 2], 0.0F);
  EXPECT_EQ(std::signbit(a[260 * 2]), std::signbit(b[260 * 2]));
}

// Goal: a long sample needs no more memory than a short one, and is as accurate.
// Method: scratch of exactly the asked size (which no length goes into), with a guard behind it;
// some rows in double precision, and the same bits from tiles of 1000 rows.
TEST_P(AttentionOnPath, TakesLongSamplesInTheSameScratch) {
  for (const std::uint32_t window : {0U, 1024U}) {
    const AttentionSpec spec = spec_of(2, 1, 8, window);
    const Sample sample = make_sample(spec, 5000, DType::f32);
    Call call = make_call(spec, sample, DType::f32);
    const auto device = cpu_device(GetParam(), 2);
    const std::uint64_t scratch_bytes = device->scratch_bytes({8, 2});
    const DeviceMemory scratch = aligned_memory(scratch_bytes + 64);
    std::memset(scratch.get() + scratch_bytes, 0x5A, 64);
    const std::vector<Segment> segments = segments_of({5000});
    call.op.segments = segments;
    device->attention(call.op, scratch.get(), {});
    EXPECT_EQ(std::count(scratch.get() + scratch_bytes, scratch.get() + scratch_bytes + 64,
                         std::byte{0x5A}),
              64);
    const Rows q = to_rows(sample.q, 16);
    const Rows k = to_rows(sample.k, 8);
    const Rows v = to_rows(sample.v, 8);
    for (const std::size_t row : {0, 1023, 1024, 1025, 2048, 4999}) {
      const std::span<const std::byte> bytes(call.q.data() + row * 64, 64);
      EXPECT_LE(worst_row_error(to_floats(bytes, DType::f32),
                                {reference_attention_row(row, q, k, v, spec)}),
                1e-5)
          << row << " window " << window;
    }
    EXPECT_EQ(attend_tiles(GetParam(), 1, spec, sample, DType::f32, {1000, 1000, 1000, 1000, 1000}),
              call.q);
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, AttentionOnPath, testing::ValuesIn(machine_isas()),
                         [](const auto& isa) { return std::string(cpu_isa_name(isa.param)); });

}  // namespace
}  // namespace librarian::gpu_exec
