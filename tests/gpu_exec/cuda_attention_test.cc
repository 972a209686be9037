// CUDA attention, its kernels run on the processor: what each row sees and how it is weighted, the
// same bits however rows are grouped, and values that are not finite.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "gpu_exec/cuda_kernel_attention.h"
#include "tests/gpu_exec/cuda_testing.h"
#include "tests/gpu_exec/reference.h"

namespace librarian::gpu_exec {
namespace {

AttentionSpec spec_of(std::uint32_t heads, std::uint32_t kv_heads, std::uint32_t head_dim,
                      std::uint32_t window = 0) {
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
    AttentionSpec spec = spec_of(2, 1, 20, (flags & 1U) != 0 ? 40 : 0);
    spec.causal = (flags & 2U) == 0;
    spec.chunk = (flags & 4U) != 0 ? 50 : 0;
    spec.softcap = (flags & 8U) != 0 ? 2.5F : 0;
    spec.sinks = (flags & 16U) != 0;
    spec.alibi = (flags & 32U) != 0;
    specs.push_back(spec);
  }
  return specs;
}

/// Sizes of all kernels, and each flag once or twice.
std::vector<AttentionSpec> various_specs() {
  std::vector<AttentionSpec> specs = {spec_of(2, 1, 64),      spec_of(1, 1, 80),
                                      spec_of(1, 1, 96),      spec_of(2, 2, 128),
                                      spec_of(1, 1, 256, 50), spec_of(3, 1, 20)};
  const AttentionSpec base = spec_of(2, 1, 24);
  for (int i = 0; i < 6; ++i) {
    specs.push_back(base);
  }
  specs[6].window = 1;
  specs[7].window = 64;
  specs[8].chunk = 70;
  specs[9].softcap = 0.5F;
  specs[10].alibi = true;
  specs[11] = flag_specs()[63];
  specs[11].causal = true;
  return specs;
}

std::string describe(const AttentionSpec& spec) {
  return std::to_string(spec.heads) + "/" + std::to_string(spec.kv_heads) + "x" +
         std::to_string(spec.head_dim) + (spec.causal ? "" : " two-way") + " window " +
         std::to_string(spec.window) + " chunk " + std::to_string(spec.chunk) + " cap " +
         std::to_string(spec.softcap) + (spec.sinks ? " sinks" : "") + (spec.alibi ? " alibi" : "");
}

/// A kernel: what it reads, and with what it multiplies.
struct Path {
  const char* name;
  DType type;
  bool tensor_cores;
  double tolerance;
};
constexpr Path kPaths[] = {{"tensor_bf16", DType::bf16, true, 0x1p-8},
                           {"tensor_f16", DType::f16, true, 0x1p-11},
                           {"plain_bf16", DType::bf16, false, 0x1p-8},
                           {"plain_f16", DType::f16, false, 0x1p-11},
                           {"plain_f32", DType::f32, false, 5e-6}};

/// Some of the specs for the kernels that differ from plain_f32 in loads and stores alone.
std::vector<AttentionSpec> for_path(const Path& path, const std::vector<AttentionSpec>& specs) {
  const std::size_t step = path.tensor_cores || path.type == DType::f32 ? 1 : 5;
  std::vector<AttentionSpec> some;
  for (std::size_t i = 0; i < specs.size(); i += step) {
    some.push_back(specs[i]);
  }
  return some;
}

/// q, k, v of rows, and the heads' sinks.
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

/// What a launch reads and writes.
struct Call {
  Bytes q, k, v;
  std::vector<float> sinks, slopes;
  CudaAttention op;
};
Call make_call(const AttentionSpec& spec, const Sample& sample, DType type) {
  Call call{to_bytes(sample.q, type), to_bytes(sample.k, type),
            to_bytes(sample.v, type), sample.sinks,
            alibi_slopes(spec.heads), {}};
  call.op.q = call.q.data();
  call.op.k = call.k.data();
  call.op.v = call.v.data();
  call.op.type = type;
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

void run(const Path& path, CudaAttention op, const std::vector<CudaAttentionTile>& tiles) {
  op.tiles = tiles.data();
  op.tile_count = static_cast<std::uint32_t>(tiles.size());
  with_attention_kernel(op, path.tensor_cores, run_emulated);
}

/// Segments in tiles of at most `rows_max` rows.
std::vector<CudaAttentionTile> tiles_of(const std::vector<Segment>& segments,
                                        std::uint64_t rows_max = kCudaAttentionRows) {
  std::vector<CudaAttentionTile> tiles;
  for (const Segment& segment : segments) {
    for (std::uint64_t row = 0; row < segment.rows; row += rows_max) {
      CudaAttentionTile tile;
      tile.q_row = static_cast<std::uint32_t>(segment.row_begin + row);
      tile.kv_row = static_cast<std::uint32_t>(segment.row_begin);
      tile.position = static_cast<std::uint32_t>(segment.position + row);
      tile.rows = static_cast<std::uint32_t>(std::min(rows_max, segment.rows - row));
      tile.keys = static_cast<std::uint32_t>(segment.position + segment.rows);
      tiles.push_back(tile);
    }
  }
  return tiles;
}

/// Samples of these lengths in one launch.
Bytes attend(const Path& path, const AttentionSpec& spec, const Sample& sample,
             const std::vector<std::uint64_t>& lengths,
             std::uint64_t rows_max = kCudaAttentionRows) {
  Call call = make_call(spec, sample, path.type);
  run(path, call.op, tiles_of(segments_of(lengths), rows_max));
  return call.q;
}
Bytes attend(const Path& path, const AttentionSpec& spec, const Sample& sample) {
  return attend(path, spec, sample, {sample.q.size() / spec.heads / spec.head_dim});
}

/// One sample in pieces, each a launch of its own: rows of k and v after a piece are not there yet,
/// and NaN to show it.
Bytes attend_pieces(const Path& path, const AttentionSpec& spec, const Sample& sample,
                    const std::vector<std::uint64_t>& pieces) {
  Call call = make_call(spec, sample, path.type);
  const std::uint64_t q_row = std::uint64_t{spec.heads} * spec.head_dim * dtype_bytes(path.type);
  const std::uint64_t kv_row =
      std::uint64_t{spec.kv_heads} * spec.head_dim * dtype_bytes(path.type);
  std::uint64_t position = 0;
  for (const std::uint64_t rows : pieces) {
    Bytes keys(call.k.size(), std::byte{0xFF});
    Bytes values(call.v.size(), std::byte{0xFF});
    std::memcpy(keys.data(), call.k.data(), (position + rows) * kv_row);
    std::memcpy(values.data(), call.v.data(), (position + rows) * kv_row);
    CudaAttention op = call.op;
    Bytes queries(call.q.data() + position * q_row, call.q.data() + (position + rows) * q_row);
    op.q = queries.data();
    op.k = keys.data();
    op.v = values.data();
    run(path, op, tiles_of({{0, rows, position, 0}}));
    std::memcpy(call.q.data() + position * q_row, queries.data(), queries.size());
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

class CudaAttentionOnPath : public testing::TestWithParam<Path> {};

// Goal: the output is that of the definition, for all head sizes.
// Method: double precision, with samples shorter than, as long as and longer than a key chunk.
TEST_P(CudaAttentionOnPath, IsAccurate) {
  const Path& path = GetParam();
  for (const std::uint32_t head_dim : {1, 8, 16, 20, 40, 64, 65, 80, 96, 128, 192, 256}) {
    const AttentionSpec spec = spec_of(2, head_dim % 16 == 0 ? 1 : 2, head_dim);
    for (const std::uint64_t rows : {1, 7, 63, 64, 65, 200}) {
      if (rows < 200 || head_dim % 64 == 0) {
        Sample sample = make_sample(spec, rows, path.type);
        if (head_dim == 1) {  // Nothing for the sum of a row's one column to cancel out with.
          std::transform(sample.v.begin(), sample.v.end(), sample.v.begin(), fabsf);
        }
        const auto out = to_floats(attend(path, spec, sample), path.type);
        EXPECT_LE(worst_row_error(out, expected_of(spec, sample)), path.tolerance)
            << describe(spec) << " rows " << rows;
      }
    }
  }
}

// Goal: each flag does what it says, alone and with every other.
// Method: all 64 combinations in double precision.
TEST_P(CudaAttentionOnPath, CombinesEveryFlag) {
  const Path& path = GetParam();
  for (const AttentionSpec& spec : for_path(path, flag_specs())) {
    const Sample sample = make_sample(spec, 110, path.type);
    const auto out = to_floats(attend(path, spec, sample), path.type);
    EXPECT_LE(worst_row_error(out, expected_of(spec, sample)), path.tolerance) << describe(spec);
  }
}

// Goal: each query head reads the keys of its group.
TEST_P(CudaAttentionOnPath, SharesKeysInGroups) {
  const Path& path = GetParam();
  for (const AttentionSpec& spec : {spec_of(6, 2, 16), spec_of(6, 6, 16), spec_of(7, 1, 24)}) {
    const Sample sample = make_sample(spec, 70, path.type);
    const auto out = to_floats(attend(path, spec, sample), path.type);
    EXPECT_LE(worst_row_error(out, expected_of(spec, sample)), path.tolerance) << describe(spec);
  }
}

// Goal: scores may be far apart, grow along the keys and fall again: nothing overflows, and what
// counts little is not lost before its time.
// Method: runs of keys 100 apart in score, upwards and downwards; at 1000, f32 has steps of 6e-5.
TEST_P(CudaAttentionOnPath, StandsScoresFarApart) {
  const Path& path = GetParam();
  AttentionSpec spec = spec_of(1, 1, 2);
  spec.scale = 1.0F;
  Sample sample = make_sample(spec, 400, path.type);
  for (std::size_t j = 0; j < 400; ++j) {
    sample.q[j * 2] = (j % 2 == 0 ? 1.0F : -1.0F);
    const std::size_t run = j / 40;
    sample.k[j * 2] = static_cast<float>(run) * 100.0F + static_cast<float>(j % 40) * 0.01F;
  }
  sample.k = rounded(sample.k, path.type);
  std::transform(sample.v.begin(), sample.v.end(), sample.v.begin(), fabsf);
  const auto out = to_floats(attend(path, spec, sample), path.type);
  EXPECT_LE(worst_row_error(out, expected_of(spec, sample)), std::max(5e-4, path.tolerance * 2));
}

// Goal: a sink of minus infinity is none, and one above all scores takes everything.
TEST_P(CudaAttentionOnPath, LetsSinksTakeNothingOrAll) {
  const Path& path = GetParam();
  const AttentionSpec without = spec_of(2, 1, 24);
  AttentionSpec with = without;
  with.sinks = true;
  Sample sample = make_sample(with, 70, path.type);
  sample.sinks.assign(2, -std::numeric_limits<float>::infinity());
  EXPECT_EQ(attend(path, with, sample), attend(path, without, sample));
  sample.sinks.assign(2, 1e30F);
  EXPECT_EQ(to_floats(attend(path, with, sample), path.type),
            std::vector<float>(sample.q.size(), 0.0F));
}

// Goal: however a sample is cut, each row has the same bits.
// Method: one launch against pieces that end at, before and after tiles and key chunks, and against
// smaller tiles; rows of k and v after a piece hold NaN patterns.
TEST_P(CudaAttentionOnPath, GivesTheSameBitsForAnyTiles) {
  const Path& path = GetParam();
  const std::vector<std::vector<std::uint64_t>> cuts = {{64, 65, 7}, {1, 135}, {31, 33, 72}};
  for (const AttentionSpec& spec : for_path(path, various_specs())) {
    const Sample sample = make_sample(spec, 136, path.type);
    const Bytes whole = attend(path, spec, sample);
    for (const auto& pieces : cuts) {
      EXPECT_EQ(attend_pieces(path, spec, sample, pieces), whole)
          << describe(spec) << " first piece " << pieces[0];
    }
    EXPECT_EQ(attend(path, spec, sample, {136}, 23), whole) << describe(spec);
  }
}

// Goal: a row's bits do not depend on where in the block it is, or on its neighbours.
// Method: samples in one launch against each alone.
TEST_P(CudaAttentionOnPath, KeepsSamplesApart) {
  const Path& path = GetParam();
  const std::vector<std::uint64_t> lengths = {70, 1, 66, 5, 31};
  for (AttentionSpec spec : for_path(path, various_specs())) {
    spec.causal = spec.window != 0;
    const Sample all = make_sample(spec, std::reduce(lengths.begin(), lengths.end()), path.type);
    Bytes alone;
    for (const Segment& segment : segments_of(lengths)) {
      const auto cut = [&](const std::vector<float>& values, std::size_t width) {
        const auto begin = values.begin() + static_cast<std::ptrdiff_t>(segment.row_begin * width);
        return std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(segment.rows * width));
      };
      const std::size_t q_width = std::size_t{spec.heads} * spec.head_dim;
      const std::size_t kv_width = std::size_t{spec.kv_heads} * spec.head_dim;
      const Bytes out = attend(
          path, spec, {cut(all.q, q_width), cut(all.k, kv_width), cut(all.v, kv_width), all.sinks});
      alone.insert(alone.end(), out.begin(), out.end());
    }
    EXPECT_EQ(attend(path, spec, all, lengths), alone) << describe(spec);
  }
}

// Goal: a value that a row does not see cannot change it, not even an infinite one.
// Method: infinity, NaN and huge numbers at one position; exactly the rows that see it change,
// and those too have the same bits in any tiles.
TEST_P(CudaAttentionOnPath, IgnoresWhatARowDoesNotSee) {
  const Path& path = GetParam();
  const std::size_t element = dtype_bytes(path.type);
  std::vector<AttentionSpec> specs = {spec_of(1, 1, 16),     spec_of(1, 1, 16, 30),
                                      spec_of(1, 1, 16, 90), spec_of(1, 1, 16),
                                      spec_of(1, 1, 16),     spec_of(1, 1, 256)};
  specs[3].chunk = 50;
  specs[4].chunk = 50;
  specs[4].causal = false;
  for (const AttentionSpec& spec : for_path(path, specs)) {
    const Sample sample = make_sample(spec, 150, path.type);
    const Bytes clean = attend(path, spec, sample);
    const float huge = path.type == DType::f16 ? -6e4F : -3e38F;
    for (const float poison : {std::numeric_limits<float>::infinity(), std::nanf(""), huge}) {
      Sample dirty = sample;
      const std::size_t d = spec.head_dim;
      for (std::size_t i = 75 * d; i < 76 * d; ++i) {
        dirty.v[i] = poison;
        dirty.k[i] = poison == huge ? 0.1F : poison;
      }
      const Bytes out = attend(path, spec, dirty);
      const std::size_t row_bytes = spec.head_dim * element;
      for (std::size_t row = 0; row < 150; ++row) {
        const bool same =
            std::memcmp(&out[row * row_bytes], &clean[row * row_bytes], row_bytes) == 0;
        EXPECT_EQ(same, !reference_sees(spec, row, 75))
            << describe(spec) << " row " << row << " poison " << poison;
      }
      if (spec.causal) {
        EXPECT_EQ(attend_pieces(path, spec, dirty, {64, 13, 73}), out)
            << describe(spec) << " poison " << poison;
      }
    }
  }
}

// Goal: nor does the sign of a zero show what a row does not see.
// Method: at row 100 the sums shrink to -0, and all that it sees after is -0; only the unseen value
// at 101 could make +0 of it.
TEST_P(CudaAttentionOnPath, HidesTheSignOfZeros) {
  const Path& path = GetParam();
  AttentionSpec spec = spec_of(1, 1, 8);
  spec.scale = 1.0F;
  Sample sample = make_sample(spec, 128, path.type);
  sample.q.assign(sample.q.size(), 1.0F);
  for (std::size_t i = 0; i < sample.k.size(); ++i) {
    const std::size_t row = i / 8;
    sample.k[i] = row < 64 ? 0.0F : 25.0F;
    sample.v[i] = row < 64 ? -1.0F : -0.0F;
  }
  for (const float unseen : {-1.0F, 1.0F}) {
    std::fill_n(&sample.v[808], 8, unseen);
    const auto out = to_floats(attend(path, spec, sample), path.type);
    for (std::size_t i = 800; i < 808; ++i) {
      EXPECT_EQ(bits_of(out[i]), 0U) << unseen;
    }
  }
}

// Goal: an infinite value among those that a row sees shows in its own column only.
TEST_P(CudaAttentionOnPath, KeepsInfinityInItsColumn) {
  const Path& path = GetParam();
  const AttentionSpec spec = spec_of(1, 1, 32);
  Sample sample = make_sample(spec, 100, path.type);
  const auto clean = to_floats(attend(path, spec, sample), path.type);
  sample.v[70 * 32 + 5] = std::numeric_limits<float>::infinity();
  const auto out = to_floats(attend(path, spec, sample), path.type);
  for (std::size_t i = 0; i < out.size(); ++i) {
    EXPECT_EQ(out[i], i / 32 >= 70 && i % 32 == 5 ? HUGE_VALF : clean[i]) << i;
  }
}

// Goal: nothing but the rows of the tiles is written, and not more than their heads.
// Method: tiles for some rows in the middle; all the others keep their bits.
TEST_P(CudaAttentionOnPath, WritesItsOwnRowsOnly) {
  const Path& path = GetParam();
  for (const std::uint32_t head_dim : {24, 37, 128, 200}) {
    const AttentionSpec spec = spec_of(2, 1, head_dim);
    const Sample sample = make_sample(spec, 150, path.type);
    const Bytes whole = attend(path, spec, sample);
    Call call = make_call(spec, sample, path.type);
    Bytes expected = call.q;
    const std::size_t row_bytes = std::size_t{spec.heads} * head_dim * dtype_bytes(path.type);
    std::copy(whole.begin() + static_cast<std::ptrdiff_t>(70 * row_bytes),
              whole.begin() + static_cast<std::ptrdiff_t>(90 * row_bytes),
              expected.begin() + static_cast<std::ptrdiff_t>(70 * row_bytes));
    run(path, call.op, {{70, 0, 70, 17, 90}, {87, 0, 87, 3, 90}});
    EXPECT_EQ(call.q, expected) << head_dim;
    EXPECT_EQ(call.k, to_bytes(sample.k, path.type));
    EXPECT_EQ(call.v, to_bytes(sample.v, path.type));
  }
}

// Goal: rows that do not begin at multiples of 16 bytes give the same bits.
// Method: everything moved by one element.
TEST_P(CudaAttentionOnPath, TakesAnyAlignment) {
  const Path& path = GetParam();
  const std::size_t element = dtype_bytes(path.type);
  for (const std::uint32_t head_dim : {64, 256}) {
    const AttentionSpec spec = spec_of(1, 1, head_dim);
    const Sample sample = make_sample(spec, 70, path.type);
    const Bytes aligned = attend(path, spec, sample);
    Call call = make_call(spec, sample, path.type);
    for (Bytes* bytes : {&call.q, &call.k, &call.v}) {
      bytes->insert(bytes->begin(), element, std::byte{0x11});
    }
    call.op.q = call.q.data() + element;
    call.op.k = call.k.data() + element;
    call.op.v = call.v.data() + element;
    run(path, call.op, tiles_of(segments_of({70})));
    EXPECT_EQ(Bytes(call.q.begin() + static_cast<std::ptrdiff_t>(element), call.q.end()), aligned);
    EXPECT_EQ(call.q[0], std::byte{0x11});
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, CudaAttentionOnPath, testing::ValuesIn(kPaths),
                         [](const auto& path) { return std::string(path.param.name); });

}  // namespace
}  // namespace librarian::gpu_exec
