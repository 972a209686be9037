// Goal: captures with parameters keep exactly what they say, and nothing else changes.
// Method: one job keeps everything whole; others keep parts or lossy copies of the same tensors,
// and are compared with the first through the store's reader and with the formulas of the format.
#include <gtest/gtest.h>

#include <cstring>

#include "activation_store/diff.h"
#include "activation_store/lossy.h"
#include "activation_store/store_reader.h"
#include "activation_store/verify.h"
#include "gpu_exec/layer_executor.h"
#include "ingest/kept_rows.h"
#include "tests/ingest/job_machine.h"

namespace librarian::ingest {
namespace {

using activation_store::SampleRows;
using activation_store::StoreReader;
using testing::CrashCase;
using testing::kOut;
using testing::Machine;

constexpr std::uint64_t kHidden = 16;
constexpr std::uint64_t kSamples = 9;

const std::map<std::string, std::string>& model() {
  static const std::map<std::string, std::string> files = testing::tiny_model();
  return files;
}

CrashCase with(const std::vector<std::string>& captures, StateMode state = StateMode::memory) {
  return {"", captures, state, std::chrono::hours(1), StagingMode::memory, false, true};
}

const std::vector<std::string>& subsets() {
  static const std::vector<std::string> captures{
      "embed(positions=last)",          "resid_post@0(positions=loss)",
      "resid_post@1(dtype=fp8_e4m3)",   "resid_post@2(keep_mantissa_bits=4)",
      "attn_out@2(positions=-2..-1)",   "resid_post@3(dtype=fp8_e4m3,positions=loss)",
      "mlp_out@4(positions=15..30)",    "resid_post@4(keep_mantissa_bits=3,positions=2..4)",
      "final.post_norm(positions=0..0)"};
  return captures;
}

struct Wanted {
  const char* capture;
  const char* positions;  ///< As in brackets; null: all.
};

/// The rows of a sample that positions mean, worked out here and not by the code under test.
std::vector<std::int64_t> places(const std::string& positions, std::int64_t length,
                                 std::int64_t first_token) {
  const std::vector<std::uint8_t> mask = Machine::loss_mask();
  std::vector<std::int64_t> kept;
  for (std::int64_t k = 0; k < length; ++k) {
    const bool keep = positions == "loss"     ? mask[static_cast<std::size_t>(first_token + k)] != 0
                      : positions == "last"   ? k == length - 1
                      : positions == "-2..-1" ? k >= length - 2
                      : positions == "15..30" ? k >= 15 && k <= 30
                      : positions == "2..4"   ? k >= 2 && k <= 4
                                              : k == 0;
    if (keep) {
      kept.push_back(k);
    }
  }
  return kept;
}

std::vector<std::byte> pick(const SampleRows& whole, const std::vector<std::int64_t>& rows) {
  std::vector<std::byte> picked;
  for (const std::int64_t row : rows) {
    const auto at = whole.bytes.begin() + row * static_cast<std::ptrdiff_t>(kHidden * 2);
    picked.insert(picked.end(), at, at + kHidden * 2);
  }
  return picked;
}

std::vector<float> widen(const std::vector<std::byte>& rows) {
  std::vector<float> wide(rows.size() / 2);
  gpu_exec::convert_elements(gpu_exec::DType::bf16, rows, gpu_exec::DType::f32,
                             std::as_writable_bytes(std::span(wide)));
  return wide;
}

void expect_subset(const StoreReader& whole, const StoreReader& part, const Wanted& wanted,
                   std::uint64_t sample, std::int64_t first_token) {
  SCOPED_TRACE(std::string(wanted.capture) + " of sample " + std::to_string(sample));
  const auto all = whole.sample(wanted.capture, sample);
  const auto kept = part.sample(wanted.capture, sample);
  ASSERT_TRUE(all) << all.error().message();
  ASSERT_TRUE(kept) << kept.error().message();
  std::vector<std::byte> rows = all->bytes;
  if (wanted.positions != nullptr) {
    const auto here = places(wanted.positions, static_cast<std::int64_t>(all->tokens), first_token);
    ASSERT_TRUE(kept->positions);
    EXPECT_EQ(*kept->positions, here);
    rows = pick(*all, here);
  } else {
    EXPECT_FALSE(kept->positions);
  }
  if (kept->type == activation_store::StoredType::f8_e4m3) {
    const std::vector<float> wide = widen(rows);
    std::vector<std::byte> codes(wide.size());
    std::vector<float> scales(wide.size() / kHidden);
    activation_store::encode_fp8_rows(wide, kHidden, codes, scales);
    EXPECT_EQ(kept->bytes, codes);
    const auto stored = part.sample(std::string(wanted.capture) + ".scales", sample);
    ASSERT_TRUE(stored) << stored.error().message();
    EXPECT_TRUE(stored->is_vector);
    EXPECT_EQ(stored->positions, kept->positions);
    ASSERT_EQ(stored->bytes.size(), scales.size() * sizeof(float));
    EXPECT_TRUE(std::equal(stored->bytes.begin(), stored->bytes.end(),
                           std::as_bytes(std::span(scales)).begin()));
    return;
  }
  const std::string name = wanted.capture;
  if (name == "blocks.2.resid_post" || name == "blocks.4.resid_post") {
    activation_store::round_mantissas(kept->type, name == "blocks.2.resid_post" ? 4 : 3, rows);
  }
  EXPECT_EQ(kept->bytes, rows);
}

// Catches: rows of other tokens, rows shifted at a block's or part's border, a lossy copy that the
// next layer computed from, values encoded twice.
TEST(CaptureOptions, KeepTheMatchingRowsOfTheWholeCapture) {
  Machine whole(model(),
                with({"embed", "resid_post@all", "attn_out@2", "mlp_out@4", "final.post_norm"}));
  ASSERT_TRUE(whole.run());
  const auto wanted = StoreReader::open(whole.files(), kOut);
  ASSERT_TRUE(wanted);
  for (const StateMode state : {StateMode::memory, StateMode::disk}) {
    Machine machine(model(), with(subsets(), state));
    const auto report = machine.run();
    ASSERT_TRUE(report) << report.error().message();
    const auto verified = activation_store::verify_store(machine.files(), kOut, {});
    ASSERT_TRUE(verified);
    ASSERT_EQ(verified->state, activation_store::StoreState::complete)
        << verified->problems[0].path << verified->problems[0].message;
    const auto got = StoreReader::open(machine.files(), kOut);
    ASSERT_TRUE(got) << got.error().message();
    std::int64_t first_token = 0;
    for (std::uint64_t sample = 0; sample < kSamples; ++sample) {
      for (const Wanted& one :
           {Wanted{"embed", "last"}, Wanted{"blocks.0.resid_post", "loss"},
            Wanted{"blocks.1.resid_post", nullptr}, Wanted{"blocks.2.resid_post", nullptr},
            Wanted{"blocks.2.attn_out", "-2..-1"}, Wanted{"blocks.3.resid_post", "loss"},
            Wanted{"blocks.4.mlp_out", "15..30"}, Wanted{"blocks.4.resid_post", "2..4"},
            Wanted{"final.post_norm", "0..0"}}) {
        expect_subset(*wanted, *got, one, sample, first_token);
      }
      first_token += static_cast<std::int64_t>(wanted->sample("embed", sample)->tokens);
    }
    // The second part keeps no row of the mask, the others none of 15..30.
    EXPECT_EQ(got->array(1, "blocks.0.resid_post").value()->layout().rows, 0U);
    EXPECT_EQ(got->array(0, "blocks.4.mlp_out").value()->layout().rows, 0U);
    EXPECT_GT(got->array(1, "blocks.4.mlp_out").value()->layout().rows, 0U);
  }
}

// Catches: a row list or a tile that depends on how a part is cut into blocks.
TEST(CaptureOptions, GiveTheSameBytesForAnyBlocksThreadsAndState) {
  Machine reference(model(), with(subsets()));
  ASSERT_TRUE(reference.run());
  const auto wanted = reference.store();
  for (const std::uint64_t block : {3U, 7U, 1000U}) {
    for (const StateMode state : {StateMode::memory, StateMode::disk}) {
      for (const int threads : {1, 3}) {
        Machine machine(model(), with(subsets(), state));
        machine.options().block_tokens = block;
        machine.options().threads = threads;
        machine.options().host_memory_bytes = 64U << 20U;
        ASSERT_TRUE(machine.run());
        EXPECT_EQ(machine.differences(wanted), "") << block << " " << threads;
      }
    }
  }
}

// Catches: a diff that joins kept rows by their number in the part, or takes other rows for equal.
TEST(CaptureOptions, AreComparedByTokenOverAnyPartition) {
  Machine one(model(), with(subsets()));
  ASSERT_TRUE(one.run());
  const auto a = StoreReader::open(one.files(), kOut);
  for (const std::uint64_t part_tokens : {1U, 40U, 1000U}) {
    Machine other(model(), with(subsets()));
    other.options().part_tokens = part_tokens;
    ASSERT_TRUE(other.run());
    const auto b = StoreReader::open(other.files(), kOut);
    const auto report = activation_store::diff_stores(*a, *b, {});
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_TRUE(report->equal()) << part_tokens;
    ASSERT_EQ(report->captures.size(), 11U);
    EXPECT_EQ(report->captures[0].rows, kSamples);
  }
  std::vector<std::uint8_t> mask = Machine::loss_mask();
  mask[2] ^= 1U;
  Machine other(model(), with(subsets()));
  ASSERT_TRUE(replace_file(other.files(), testing::kTokens,
                           testing::token_file({5, 7, 1, 20, 3, 11, 1, 6, 4}, 32, 7, mask)));
  ASSERT_TRUE(other.run());
  const auto b = StoreReader::open(other.files(), kOut);
  const auto report = activation_store::diff_stores(*a, *b, {});
  ASSERT_TRUE(report);
  EXPECT_FALSE(report->equal());
  for (const auto& capture : report->captures) {
    const bool masked = capture.name_a == "blocks.0.resid_post" ||
                        capture.name_a.starts_with("blocks.3.resid_post");
    EXPECT_EQ(capture.incomparable.find("other tokens") != std::string::npos, masked)
        << capture.name_a << capture.incomparable;
  }
}

TEST(CaptureOptions, ThatKeepNothingAreRefused) {
  for (const auto& [capture, with_mask, says] :
       {std::tuple{"embed(positions=20..30)", true, "nothing would be kept"},
        std::tuple{"embed(positions=loss)", false, "has no loss_mask"}}) {
    CrashCase how = with({capture});
    how.loss_mask = with_mask;
    Machine machine(model(), how);
    const auto report = machine.run();
    ASSERT_FALSE(report) << capture;
    EXPECT_EQ(report.error().code(), ErrorCode::invalid_argument);
    EXPECT_NE(report.error().message().find(says), std::string::npos) << report.error().message();
    EXPECT_FALSE(machine.files().info(kOut)) << "nothing is begun";
  }
}

// The positions of logits are those before the tokens that count.
TEST(KeptRows, OfTheNextTokenEndBeforeTheSampleDoes) {
  TokenData tokens;
  tokens.input_ids.resize(7);
  tokens.offsets = {0, 3, 7};
  tokens.loss_mask = std::vector<std::uint8_t>{1, 0, 1, 1, 1, 0, 1};
  const activation_store::PartRange both{0, 2, 7};
  const activation_store::PartRange second{1, 1, 4};
  Positions next;
  next.kind = Positions::Kind::loss_next;
  EXPECT_EQ(kept_rows(tokens, both, next), (std::vector<std::int64_t>{1, 3, 5}));
  EXPECT_EQ(kept_rows(tokens, second, next), (std::vector<std::int64_t>{0, 2}));
  Positions loss;
  loss.kind = Positions::Kind::loss;
  EXPECT_EQ(kept_rows(tokens, second, loss), (std::vector<std::int64_t>{0, 1, 3}));
}

// Ranges are clipped to each sample; a sample that they miss keeps nothing.
TEST(KeptRows, OfARangeAreClippedToEachSample) {
  TokenData tokens;
  tokens.input_ids.resize(8);
  tokens.offsets = {0, 1, 3, 8};
  const activation_store::PartRange all{0, 3, 8};
  const auto rows = [&](std::int64_t first, std::int64_t last) {
    return kept_rows(tokens, all, {Positions::Kind::range, first, last});
  };
  using Rows = std::vector<std::int64_t>;
  EXPECT_EQ(rows(0, 0), (Rows{0, 1, 3}));
  EXPECT_EQ(rows(1, 2), (Rows{2, 4, 5}));
  EXPECT_EQ(rows(-1, -1), (Rows{0, 2, 7}));
  EXPECT_EQ(rows(-3, -2), (Rows{1, 5, 6}));
  EXPECT_EQ(rows(1, -2), (Rows{4, 5, 6}));
  EXPECT_EQ(rows(-2, 3), (Rows{0, 1, 2, 6}));
  EXPECT_EQ(rows(5, 9), (Rows{}));
}

}  // namespace
}  // namespace librarian::ingest
