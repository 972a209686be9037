// What latent attention asks of devices, on every CPU path and on emulated GPUs: keys of which
// heads share a part, values of another width than keys, heads that turn in their middle and are
// normalised afterwards. And what it asks of plans.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>

#include "gpu_exec/latent_attention.h"
#include "tests/gpu_exec/latent_testing.h"
#include "tests/gpu_exec/reference.h"

namespace librarian::gpu_exec {
namespace {

using testing::HasSubstr;

/// Heads whose keys are {own, shared}.
struct Shape {
  std::uint32_t heads, kv_heads, own_dim, shared_dim, value_dim;
  std::uint32_t head_dim() const { return own_dim + shared_dim; }
};
void PrintTo(const Shape& shape, std::ostream* out) {
  *out << shape.heads << "/" << shape.kv_heads << "x" << shape.own_dim << "+" << shape.shared_dim
       << " to " << shape.value_dim;
}

/// DeepSeek's and GLM's sizes, and odd ones: values wider than keys, nothing shared, all shared.
constexpr Shape kShapes[] = {{2, 2, 128, 64, 128}, {1, 1, 192, 64, 256}, {3, 3, 20, 12, 16},
                             {2, 2, 8, 8, 40},     {4, 2, 24, 0, 8},     {2, 1, 0, 10, 21},
                             {1, 1, 5, 2, 200},    {2, 2, 16, 16, 32}};

/// What all rows have.
struct Sample {
  std::vector<float> q, own, shared, v;
};
Sample make_sample(const Shape& shape, std::uint64_t rows, DType type) {
  TestRandom random(11);
  const auto numbers = [&](std::uint64_t width, float scale) {
    return rounded(random.vector(rows * width, scale), type);
  };
  return {numbers(std::uint64_t{shape.heads} * shape.head_dim(), 3.0F),
          numbers(std::uint64_t{shape.kv_heads} * shape.own_dim, 1.0F),
          numbers(shape.shared_dim, 1.0F),
          numbers(std::uint64_t{shape.kv_heads} * shape.value_dim, 1.0F)};
}

AttentionSpec spec_of(const Shape& shape) {
  AttentionSpec spec;
  spec.heads = shape.heads;
  spec.kv_heads = shape.kv_heads;
  spec.head_dim = shape.head_dim();
  spec.scale = 1.7F / std::sqrt(static_cast<float>(shape.head_dim()));
  spec.latent.kv_rank = 1;
  spec.latent.value_dim = shape.value_dim;
  return spec;
}

Rows expected_of(const Shape& shape, const Sample& sample) {
  const std::size_t rows = sample.q.size() / shape.heads / shape.head_dim();
  Rows keys(rows);
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t head = 0; head < shape.kv_heads; ++head) {
      for (std::size_t d = 0; d < shape.head_dim(); ++d) {
        const bool own = d < shape.own_dim;
        keys[i].push_back(own ? sample.own[(i * shape.kv_heads + head) * shape.own_dim + d]
                              : sample.shared[i * shape.shared_dim + d - shape.own_dim]);
      }
    }
  }
  return reference_attention(to_rows(sample.q, std::size_t{shape.heads} * shape.head_dim()), keys,
                             to_rows(sample.v, std::size_t{shape.kv_heads} * shape.value_dim),
                             spec_of(shape));
}

/// Where things lie: {own key, value} of each head side by side as latents are expanded, output
/// rows with room to spare between them, all `offset` elements behind an aligned address.
class Call {
 public:
  static constexpr std::uint64_t kGap = 8;

  Call(const Shape& shape, const Sample& sample, DType type, std::uint64_t offset = 0)
      : shape_(shape), type_(type), element_(dtype_bytes(type)), offset_(offset * element_) {
    rows_ = sample.q.size() / shape.heads / shape.head_dim();
    std::vector<float> pairs;
    for (std::size_t head = 0; head < rows_ * shape.kv_heads; ++head) {
      const auto append = [&](const std::vector<float>& from, std::size_t width) {
        const auto begin = from.begin() + static_cast<std::ptrdiff_t>(head * width);
        pairs.insert(pairs.end(), begin, begin + static_cast<std::ptrdiff_t>(width));
      };
      append(sample.own, shape.own_dim);
      append(sample.v, shape.value_dim);
    }
    q_ = memory_of(to_bytes(sample.q, type));
    pairs_ = memory_of(to_bytes(pairs, type));
    shared_ = memory_of(to_bytes(sample.shared, type));
    q_before_ = to_bytes(sample.q, type);
    y_bytes_ = rows_ * y_stride() * element_;
    y_ = memory_of(Bytes(y_bytes_, std::byte{0x5A}));
  }

  /// The operation on rows from `row` on.
  AttentionOp op(std::uint64_t row = 0) const {
    const AttentionSpec spec = spec_of(shape_);
    const std::uint64_t pair = std::uint64_t{shape_.own_dim} + shape_.value_dim;
    AttentionOp op;
    op.q = at(q_) + row * shape_.heads * shape_.head_dim() * element_;
    op.y = at(y_) + row * y_stride() * element_;
    op.y_stride = y_stride();
    op.k = at(pairs_);
    op.v = at(pairs_) + shape_.own_dim * element_;
    op.k_strides = op.v_strides = {shape_.kv_heads * pair, pair};
    op.k_shared = at(shared_);
    op.dtype = type_;
    op.heads = shape_.heads;
    op.kv_heads = shape_.kv_heads;
    op.head_dim = shape_.head_dim();
    op.shared_dim = shape_.shared_dim;
    op.value_dim = shape_.value_dim;
    op.scale = spec.scale;
    return op;
  }
  /// Makes NaN patterns of what rows from `row` on have.
  void poison(std::uint64_t row) {
    const std::uint64_t pair = std::uint64_t{shape_.own_dim} + shape_.value_dim;
    std::memset(at(pairs_) + row * shape_.kv_heads * pair * element_, 0xFF,
                (rows_ - row) * shape_.kv_heads * pair * element_);
    std::memset(at(shared_) + row * shape_.shared_dim * element_, 0xFF,
                (rows_ - row) * shape_.shared_dim * element_);
  }
  /// Output of all rows; what lies between them, and the queries, must be as they were.
  Bytes output() const {
    EXPECT_EQ(std::memcmp(at(q_), q_before_.data(), q_before_.size()), 0);
    Bytes out;
    for (std::uint64_t row = 0; row < rows_; ++row) {
      const std::byte* const from = at(y_) + row * y_stride() * element_;
      const std::uint64_t width = std::uint64_t{shape_.heads} * shape_.value_dim * element_;
      out.insert(out.end(), from, from + width);
      for (std::uint64_t i = width; i < y_stride() * element_; ++i) {
        EXPECT_EQ(from[i], std::byte{0x5A});
      }
    }
    return out;
  }

 private:
  std::uint64_t y_stride() const { return std::uint64_t{shape_.heads} * shape_.value_dim + kGap; }
  std::byte* at(const DeviceMemory& memory) const { return memory.get() + offset_; }
  DeviceMemory memory_of(const Bytes& bytes) const {
    DeviceMemory memory = aligned_memory(bytes.size() + offset_ + 1);
    std::memcpy(memory.get() + offset_, bytes.data(), bytes.size());
    return memory;
  }

  const Shape shape_;
  const DType type_;
  const std::uint64_t element_, offset_;
  std::uint64_t rows_ = 0, y_bytes_ = 0;
  DeviceMemory q_, pairs_, shared_, y_;
  Bytes q_before_;
};

/// @param device  If not the CPU, one whose attention takes no scratch.
void attend(Device& device, const Shape& shape, AttentionOp op,
            const std::vector<Segment>& segments) {
  const std::uint64_t scratch_bytes =
      device.works_on_host_memory()
          ? device.scratch_bytes(
                {std::max(shape.head_dim(), shape.value_dim), shape.heads / shape.kv_heads})
          : 0;
  const DeviceMemory scratch = aligned_memory(scratch_bytes);
  op.segments = segments;
  device.attention(op, scratch.get(), {});
}

// Goal: the output is the definition's, of every width, and goes where it belongs.
// Method: double precision; samples shorter and longer than a key chunk, in one block.
TEST_P(PartedHeads, AreAttendedAsDefined) {
  for (const Shape& shape : kShapes) {
    for (const DType type : {DType::f32, DType::bf16, DType::f16}) {
      const std::vector<std::uint64_t> lengths = {1, 70, 150};
      Sample all;
      Rows expected;
      for (const std::uint64_t length : lengths) {
        const Sample sample = make_sample(shape, length, type);
        const Rows rows = expected_of(shape, sample);
        expected.insert(expected.end(), rows.begin(), rows.end());
        all.q.insert(all.q.end(), sample.q.begin(), sample.q.end());
        all.own.insert(all.own.end(), sample.own.begin(), sample.own.end());
        all.shared.insert(all.shared.end(), sample.shared.begin(), sample.shared.end());
        all.v.insert(all.v.end(), sample.v.begin(), sample.v.end());
      }
      const Call call(shape, all, type);
      attend(device(), shape, call.op(), segments_of(lengths));
      drain();
      const double tolerance = type == DType::f32 ? 5e-6 : (type == DType::f16 ? 0x1p-11 : 0x1p-8);
      EXPECT_LE(worst_row_error(to_floats(call.output(), type), expected), tolerance)
          << testing::PrintToString(shape) << " " << dtype_name(type);
    }
  }
}

// Goal: however a sample is cut, and wherever memory begins, a row has the same bits.
// Method: pieces, behind which there are NaN patterns yet; everything moved by one element.
TEST_P(PartedHeads, GiveTheSameBitsForAnyTilesAndAddresses) {
  for (const Shape& shape : kShapes) {
    for (const DType type : {DType::bf16, DType::f32}) {
      const Sample sample = make_sample(shape, 140, type);
      const Call whole(shape, sample, type);
      attend(device(), shape, whole.op(), segments_of({140}));
      drain();
      const Bytes expected = whole.output();
      const Call moved(shape, sample, type, 1);
      attend(device(), shape, moved.op(), segments_of({140}));
      drain();
      EXPECT_EQ(moved.output(), expected) << testing::PrintToString(shape);

      Bytes pieces;
      const std::uint64_t row_bytes =
          std::uint64_t{shape.heads} * shape.value_dim * dtype_bytes(type);
      for (const auto& [begin, end] :
           {std::pair<std::uint64_t, std::uint64_t>{0, 63}, {63, 129}, {129, 140}}) {
        Call piece(shape, sample, type);
        piece.poison(end);
        attend(device(), shape, piece.op(begin), {{0, end - begin, begin, 0}});
        drain();
        const Bytes out = piece.output();
        pieces.insert(pieces.end(), out.begin() + static_cast<std::ptrdiff_t>(begin * row_bytes),
                      out.begin() + static_cast<std::ptrdiff_t>(end * row_bytes));
      }
      EXPECT_EQ(pieces, expected) << testing::PrintToString(shape) << " " << dtype_name(type);
    }
  }
}

// Goal: a part of a key that a row does not see cannot change it, not even by being infinite.
TEST_P(PartedHeads, IgnoreWhatARowDoesNotSee) {
  const Shape shape{1, 1, 16, 16, 40};
  for (const DType type : {DType::bf16, DType::f32}) {
    Sample sample = make_sample(shape, 100, type);
    const Call clean(shape, sample, type);
    attend(device(), shape, clean.op(), segments_of({100}));
    drain();
    std::fill_n(&sample.shared[std::size_t{50} * 16], 16, std::numeric_limits<float>::infinity());
    std::fill_n(&sample.v[std::size_t{50} * 40], 40, std::nanf(""));
    const Call dirty(shape, sample, type);
    attend(device(), shape, dirty.op(), segments_of({100}));
    drain();
    const std::size_t row_bytes = 40 * dtype_bytes(type);
    const Bytes before = clean.output();
    const Bytes after = dirty.output();
    for (std::size_t row = 0; row < 100; ++row) {
      EXPECT_EQ(std::memcmp(&before[row * row_bytes], &after[row * row_bytes], row_bytes) == 0,
                row < 50)
          << row;
    }
  }
}

// Goal: a head's bits do not depend on the heads beside it, so a tile of heads may be any.
// Method: heads one by one by their strides.
TEST_P(PartedHeads, AreIndependent) {
  const Shape shape{3, 3, 20, 12, 16};
  const Sample sample = make_sample(shape, 90, DType::bf16);
  const Call together(shape, sample, DType::bf16);
  attend(device(), shape, together.op(), segments_of({90}));
  drain();
  const Bytes expected = together.output();
  for (std::uint32_t head = 0; head < 3; ++head) {
    Shape one = shape;
    one.heads = one.kv_heads = 1;
    Sample own = sample;
    own.q.clear();
    for (std::size_t row = 0; row < 90; ++row) {
      const auto begin = sample.q.begin() + static_cast<std::ptrdiff_t>((row * 3 + head) * 32);
      own.q.insert(own.q.end(), begin, begin + 32);
    }
    const Bytes q = to_bytes(own.q, DType::bf16);
    AttentionOp op = together.op();
    Bytes queries = q;
    op.q = queries.data();
    op.y += std::size_t{head} * 16 * 2;
    op.k += std::size_t{head} * 36 * 2;
    op.v += std::size_t{head} * 36 * 2;
    op.heads = op.kv_heads = 1;
    for (std::size_t row = 0; row < 90; ++row) {
      std::memset(op.y + row * op.y_stride * 2, 0, 32);
    }
    attend(device(), one, op, segments_of({90}));
    drain();
    EXPECT_EQ(together.output(), expected) << head;
  }
}

/// How heads are turned and normalised.
struct Turn {
  std::uint32_t head_dim, rotary_begin, rotary_dim;
  RopeStyle style;
  enum class Norm : std::uint8_t { none, weights, unit } norm;
  bool after;
};
std::vector<Turn> turns() {
  std::vector<Turn> all;
  for (const auto& [head_dim, begin, dim] :
       {std::tuple<std::uint32_t, std::uint32_t, std::uint32_t>{192, 128, 64},
        {32, 20, 12},
        {24, 4, 14},
        {256, 192, 64},
        {7, 1, 2},
        {20, 0, 12}}) {
    for (const RopeStyle style : {RopeStyle::halves, RopeStyle::pairs}) {
      for (const Turn::Norm norm : {Turn::Norm::none, Turn::Norm::weights, Turn::Norm::unit}) {
        for (const bool after : {false, true}) {
          if (norm != Turn::Norm::none || !after) {
            all.push_back({head_dim, begin, dim, style, norm, after});
          }
        }
      }
    }
  }
  return all;
}

constexpr std::uint64_t kTurnedRows = 40;
constexpr std::uint32_t kTurnedHeads = 3;

Rows expected_turn(const Turn& turn, const std::vector<float>& x,
                   const std::vector<float>& weight) {
  AttentionSpec part;
  part.head_dim = turn.rotary_dim;
  part.rope = default_rope(turn.rotary_dim);
  part.rope.style = turn.style;
  const auto normed = [&](const Rows& rows) {
    const std::vector<float> ones(turn.head_dim, 1.0F);
    const bool unit = turn.norm == Turn::Norm::unit;
    return reference_norm(rows, unit ? ones : weight, nullptr,
                          {NormKind::rms, false, false, 1e-2F});
  };
  Rows heads = to_rows(x, turn.head_dim);
  if (turn.norm != Turn::Norm::none && !turn.after) {
    heads = normed(heads);
  }
  for (std::size_t head = 0; head < kTurnedHeads; ++head) {
    Rows of_head;
    for (std::size_t row = 0; row < kTurnedRows; ++row) {
      const auto begin = heads[row * kTurnedHeads + head].begin() + turn.rotary_begin;
      of_head.emplace_back(begin, begin + turn.rotary_dim);
    }
    const Rows turned = reference_rotate(of_head, 1, part, nullptr, {});
    for (std::size_t row = 0; row < kTurnedRows; ++row) {
      std::copy(turned[row].begin(), turned[row].end(),
                heads[row * kTurnedHeads + head].begin() + turn.rotary_begin);
    }
  }
  if (turn.norm != Turn::Norm::none && turn.after) {
    heads = normed(heads);
  }
  for (std::size_t row = 0; row < heads.size(); ++row) {
    const std::size_t periods = (row / kTurnedHeads + 3) / 7;
    std::for_each(heads[row].begin(), heads[row].end(), [&](double& value) {
      value *= 1 + 0.25 * std::log1p(static_cast<double>(periods));
    });
  }
  return heads;
}

// Goal: a part inside a head turns, norms come before or after, and the temperature's positions are
// counted from where they should.
// Method: double precision, one rounding in f32.
TEST_P(TurnedHeads, AreAsDefined) {
  for (const Turn& turn : turns()) {
    TestRandom random(turn.head_dim);
    const auto x = random.vector(kTurnedRows * kTurnedHeads * turn.head_dim, 2.0F);
    const auto weight = random.vector(turn.head_dim, 0.5F, 1.0F);
    Bytes bytes = to_bytes(x, DType::f32);
    const RopeSpec rope = default_rope(turn.rotary_dim);
    std::vector<float> table(rope_table_floats(kTurnedRows, turn.rotary_dim));
    device().rope_table({rope.inverse_frequency, 1.0F, 0, kTurnedRows, table.data()}, nullptr);
    const std::vector<Segment> segments = segments_of({kTurnedRows});
    RotateOp op;
    op.x = bytes.data();
    op.dtype = DType::f32;
    op.rows = kTurnedRows;
    op.heads = kTurnedHeads;
    op.head_dim = turn.head_dim;
    op.rotary_dim = turn.rotary_dim;
    op.rotary_begin = turn.rotary_begin;
    op.style = turn.style;
    op.norm_weight = turn.norm == Turn::Norm::weights ? weight.data() : nullptr;
    op.unit_norm = turn.norm == Turn::Norm::unit;
    op.norm_after = turn.after;
    op.epsilon = 1e-2F;
    op.segments = segments;
    op.table = table.data();
    op.temperature_beta = 0.25F;
    op.temperature_original = 7;
    op.temperature_offset = 3;
    device().rotate(op, nullptr);
    drain();
    EXPECT_LE(worst_row_error(to_floats(bytes, DType::f32), expected_turn(turn, x, weight)), 1e-6)
        << turn.head_dim << " from " << turn.rotary_begin << " norm " << static_cast<int>(turn.norm)
        << (turn.after ? " after" : " before");
  }
}

std::vector<TestDevice> cpu_paths() {
  std::vector<TestDevice> paths;
  for (const CpuIsa isa : machine_isas()) {
    paths.push_back({cpu_isa_name(isa), [isa] { return cpu_device(isa, 2); }});
  }
  return paths;
}
INSTANTIATE_TEST_SUITE_P(Paths, PartedHeads, testing::ValuesIn(cpu_paths()), name_of_device);
INSTANTIATE_TEST_SUITE_P(Paths, TurnedHeads, testing::ValuesIn(cpu_paths()), name_of_device);

/// DeepSeek-V3's attention.
LayerSpec deepseek_layer() {
  LayerSpec layer;
  AttentionSpec& attention = layer.attention;
  attention.heads = attention.kv_heads = 128;
  attention.head_dim = 192;
  attention.rope = default_rope(64);
  attention.latent = {512, 1536, 128, 64, 128, 1e-6F, false};
  layer.mlp.width = 2048;
  return layer;
}

// Goal: a token's keys and values take what eight heads of ordinary attention take and its latent,
// not what 128 heads would; queries and output of all heads are never there at once.
// Method: what memory grows by with the longest sample, and with the block.
TEST(LatentPlan, ExpandsSomeHeadsAtATime) {
  ModelSpec model;
  model.hidden_size = 7168;
  model.layers = {deepseek_layer()};
  const auto device = cpu_device(best_cpu_isa(), 1);
  const auto workspace = [&](std::uint64_t block_rows, std::uint64_t sample_rows) {
    ExecutorOptions options;
    options.block_rows_max = block_rows;
    options.sample_rows_max = sample_rows;
    return LayerExecutor::memory(model, options, *device)->workspace_bytes;
  };
  EXPECT_EQ(workspace(1024, 65536) - workspace(1024, 32768), 32768ULL * (8 * 256 + 512 + 64) * 2);
  EXPECT_EQ(workspace(2048, 65536) - workspace(1024, 65536),
            1024ULL * ((7168 + 128 * 128 + 1536 + 8 * 192) * 2 + 64 * 4));
}

TEST(LatentPlan, TakesAtLeastOneHeadAndNoMoreThanThereAre) {
  AttentionSpec attention = deepseek_layer().attention;
  EXPECT_EQ(latent_tile_heads(attention), 8U);
  attention.heads = 5;
  EXPECT_EQ(latent_tile_heads(attention), 5U);
  attention.heads = 128;
  attention.latent.value_dim = 4000;
  EXPECT_EQ(latent_tile_heads(attention), 1U);
}

// Goal: sizes that contradict each other are refused with a sentence that names them.
TEST(LatentPlan, RefusesSizesThatDoNotFit) {
  const auto device = cpu_device(best_cpu_isa(), 1);
  const auto error_of = [&](const std::function<void(AttentionSpec&)>& change) {
    ModelSpec model;
    model.hidden_size = 64;
    LayerSpec layer = awkward_layer();
    AttentionSpec& attention = layer.attention;
    attention.kv_heads = attention.heads;
    attention.qk_norm = QkNorm::none;
    attention.latent = {24, 0, 8, 12, 16, 1e-6F, false};
    change(attention);
    model.layers = {layer};
    ExecutorOptions options;
    options.block_rows_max = 8;
    const auto executor = LayerExecutor::create(model, options, *device);
    return executor ? std::string() : executor.error().message();
  };
  EXPECT_EQ(error_of([](AttentionSpec&) {}), "");
  EXPECT_THAT(error_of([](AttentionSpec& spec) { spec.kv_heads = 2; }), HasSubstr("kv_heads"));
  EXPECT_THAT(error_of([](AttentionSpec& spec) { spec.qk_norm = QkNorm::head; }),
              HasSubstr("norm of q and k"));
  EXPECT_THAT(error_of([](AttentionSpec& spec) { spec.latent.nope_dim = 9; }),
              HasSubstr("nope_dim=9"));
  EXPECT_THAT(error_of([](AttentionSpec& spec) { spec.rope = default_rope(10); }),
              HasSubstr("rotary_dim=10"));
  EXPECT_THAT(error_of([](AttentionSpec& spec) { spec.latent.value_dim = 257; }),
              HasSubstr("value_dim=257"));
  EXPECT_THAT(error_of([](AttentionSpec& spec) {
                spec.latent = {};
                spec.qk_norm = QkNorm::full;
                spec.qk_norm_after_rope = true;
              }),
              HasSubstr("before rope"));
}

}  // namespace
}  // namespace librarian::gpu_exec
