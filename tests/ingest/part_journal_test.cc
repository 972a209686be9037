// Goal: a journal says after any restart what it was told, and one that says something else is
// damage, never progress.
// Method: round trips; records that nobody writes.
#include "ingest/part_journal.h"

#include <gtest/gtest.h>

#include "activation_store/store_files.h"
#include "ingest/known_weights.h"
#include "tests/support/memory_file_system.h"

namespace librarian::ingest {
namespace {

using librarian::testing::MemoryFileSystem;

activation_store::ArrayRecord array_record(const std::string& name) {
  activation_store::ArrayRecord array;
  array.name = name;
  array.shape = {37, 5};
  array.dtype = "bfloat16";
  array.rows_xxh3 = xxh3_128(name);
  array.nan_count = 1;
  array.inf_count = 2;
  array.raw_bytes = 370;
  array.stored_bytes = ~0ULL;
  array.files = {{name + "/c/0/0", 123, 0xFFFFFFFFU}, {name + "/zarr.json", 45, 0}};
  return array;
}

LayerRecord layer_record(std::int32_t layer, StatePlace::Kind kind) {
  LayerRecord record;
  record.layer = layer;
  record.arrays = {array_record("blocks." + std::to_string(layer) + ".resid_post")};
  record.weights = {{"model.layers.0.mlp.up_proj.weight", xxh3_128("x").hex()}};
  record.state = {kind, kind == StatePlace::Kind::none ? "" : "state.0001"};
  return record;
}

PartProgress progress_of(const std::vector<StatePlace::Kind>& kinds) {
  PartProgress progress;
  progress.header = {"identity", 7, "cpu-avx2"};
  progress.sources = {{"https://host/model/", {{"a.safetensors", {"\"etag\"", true}}}},
                      {"/local", {{"a.safetensors", {"mtime:1:inode:2", false}}}}};
  progress.tokens = {array_record("tokens/input_ids")};
  progress.seen_weights = {{"t", "d"}};
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    progress.layers.push_back(layer_record(static_cast<std::int32_t>(i) - 1, kinds[i]));
  }
  return progress;
}

Result<PartProgress> read(const std::vector<std::string>& records) {
  MemoryFileSystem files;
  LIB_TRY_VOID(files.make_directory("/part"));
  LIB_TRY(const JournalWriter writer, JournalWriter::create(files, "/part/.journal", records));
  return read_part_journal(files, "/part");
}

constexpr auto kNone = StatePlace::Kind::none;
constexpr auto kFile = StatePlace::Kind::file;
constexpr auto kArray = StatePlace::Kind::array;

TEST(PartJournal, SaysAgainWhatItWasTold) {
  PartProgress wanted = progress_of({kFile, kArray, kNone});
  wanted.layers[1].verified = "sha256";
  const std::vector<std::string> records = journal_records(wanted);
  const auto got = read(records);
  ASSERT_TRUE(got) << got.error().message();
  EXPECT_EQ(journal_records(*got), records);
  EXPECT_EQ(got->header.part, 7U);
  EXPECT_EQ(got->header.device_kind, "cpu-avx2");
  EXPECT_TRUE(got->sources == wanted.sources);
  EXPECT_EQ(got->seen_weights, wanted.seen_weights);
  ASSERT_EQ(got->layers.size(), 3U);
  EXPECT_EQ(got->layers[0].layer, -1);
  EXPECT_EQ(got->layers[0].weights, wanted.layers[0].weights);
  EXPECT_EQ(got->layers[0].state.kind, kFile);
  EXPECT_EQ(got->layers[1].arrays[0].files, wanted.layers[1].arrays[0].files);
  EXPECT_EQ(got->layers[1].arrays[0].stored_bytes, ~0ULL);
  EXPECT_EQ(got->layers[0].verified, "") << "as journals of before";
  EXPECT_EQ(got->layers[1].verified, "sha256");
  const auto fresh = read(journal_records(progress_of({})));
  ASSERT_TRUE(fresh);
  EXPECT_TRUE(fresh->layers.empty());
}

// Catches: a record that is skipped, half understood, or blamed on the user.
TEST(PartJournal, WithARecordThatNobodyWritesIsCorrupt) {
  const std::string header = journal_records(progress_of({}))[0];
  const std::string embedding = layer_record_text(layer_record(-1, kNone));
  const auto changed = [](const std::string& record, const char* key, const Json& value) {
    Json json = Json::parse(record);
    if (value.is_discarded()) {
      json.erase(key);
    } else {
      json[key] = value;
    }
    return json.dump();
  };
  const Json gone(Json::value_t::discarded);
  const std::pair<const char*, std::vector<std::string>> cases[] = {
      {"no records", {}},
      {"no header", {embedding}},
      {"two headers", {header, header}},
      {"empty text", {header, ""}},
      {"no JSON", {header, "x"}},
      {"a list", {header, "[]"}},
      {"an unknown type", {header, R"({"type": "surprise"})"}},
      {"no type", {header, "{}"}},
      {"a type that is a number", {header, R"({"type": 1})"}},
      {"layers out of order", {header, embedding, layer_record_text(layer_record(1, kNone))}},
      {"a layer twice", {header, embedding, embedding}},
      {"an unknown verification", {header, changed(embedding, "verified", "md5")}},
      {"no embedding", {header, layer_record_text(layer_record(0, kNone))}},
      {"a layer that wraps to -1", {header, changed(embedding, "layer", 4294967295U)}},
      {"a layer of text", {header, changed(embedding, "layer", "-1")}},
      {"no layer", {header, changed(embedding, "layer", gone)}},
      {"no state", {header, changed(embedding, "state", gone)}},
      {"an unknown state", {header, changed(embedding, "state", {{"kind", "x"}, {"name", ""}})}},
      {"a state of text", {header, changed(embedding, "state", "file")}},
      {"no arrays", {header, changed(embedding, "arrays", gone)}},
      {"arrays of text", {header, changed(embedding, "arrays", {"x"})}},
      {"no weights", {header, changed(embedding, "weights", gone)}},
      {"weights of numbers", {header, changed(embedding, "weights", {{"t", 1}})}},
      {"no identity", {changed(header, "identity", gone)}},
      {"a part of text", {changed(header, "part", "7")}},
      {"a source without files", {header, R"({"type": "source", "uri": "x"})"}},
      {"a source of text", {header, R"({"type": "source", "uri": "x", "files": {"a": "b"}})"}},
      {"a digest that is none",
       {header,
        [&] {
          Json json = Json::parse(embedding);
          json["arrays"][0]["xxh3"] = "zz";
          return json.dump();
        }()}},
  };
  for (const auto& [what, records] : cases) {
    const auto got = read(records);
    EXPECT_FALSE(got) << what;
    if (got) {
      continue;
    }
    EXPECT_EQ(got.error().code(), ErrorCode::corrupt) << what << ": " << got.error().message();
    EXPECT_NE(got.error().message().find("/part/.journal"), std::string::npos) << what;
  }
  const auto later = read({changed(header, "version", 2)});
  ASSERT_FALSE(later);
  EXPECT_EQ(later.error().code(), ErrorCode::conflict);
}

struct FinishedCase {
  std::vector<StatePlace::Kind> kinds;
  std::int32_t last_layer;
  std::size_t finished;
};

// Catches: a layer taken for finished whose state is lost, or one done again without need.
TEST(FinishedLayers, AreThoseBehindWhichDurableStateLies) {
  for (const FinishedCase& row : {
           FinishedCase{{}, 3, 0},
           FinishedCase{{kNone}, 3, 0},
           FinishedCase{{kFile}, 3, 1},
           FinishedCase{{kFile, kNone}, 3, 1},
           FinishedCase{{kFile, kNone, kNone}, 3, 1},
           FinishedCase{{kNone, kNone, kArray}, 3, 3},
           FinishedCase{{kFile, kFile, kArray, kNone}, 3, 3},
           FinishedCase{{kNone, kNone, kNone, kNone, kNone}, 3, 5},
           FinishedCase{{kNone, kNone, kNone, kNone, kNone}, 4, 0},
           FinishedCase{{kNone}, -1, 1},
       }) {
    EXPECT_EQ(finished_layers(progress_of(row.kinds), row.last_layer), row.finished);
  }
}

TEST(KnownWeights, NoticeATensorWithOtherBytes) {
  KnownWeights known;
  ASSERT_TRUE(known.check({{"a", "1"}, {"b", "2"}}));
  ASSERT_TRUE(known.check({{"b", "2"}, {"c", "3"}}));
  EXPECT_FALSE(known.contradiction({{"d", "9"}}));
  EXPECT_EQ(known.contradiction({{"a", "1"}, {"c", "4"}}), "c");
  const auto changed = known.check({{"c", "4"}});
  ASSERT_FALSE(changed);
  EXPECT_EQ(changed.error().code(), ErrorCode::source_changed);
  EXPECT_NE(changed.error().message().find("'c'"), std::string::npos);
  EXPECT_TRUE(known.check({{"c", "3"}})) << "the first digest stands";
}

TEST(KnownWeights, ReadPublishedPartsOnly) {
  MemoryFileSystem files;
  for (const char* part : {"/out/part-00000", "/out/part-00001"}) {
    ASSERT_TRUE(make_directories(files, part));
  }
  ASSERT_TRUE(replace_file(files, "/out/part-00000/weights.json", weights_file_text({{"a", "1"}})));
  ASSERT_TRUE(replace_file(files, "/out/part-00001/weights.json", weights_file_text({{"a", "2"}})));
  ASSERT_TRUE(replace_file(files, "/out/part-00000/zarr.json", "{}"));
  KnownWeights known;
  ASSERT_TRUE(known.read_published(files, "/out", 2)) << "part 1 is not published";
  EXPECT_EQ(known.contradiction({{"a", "2"}}), "a");
  ASSERT_TRUE(replace_file(files, "/out/part-00001/zarr.json", "{}"));
  const auto mixed = known.read_published(files, "/out", 2);
  ASSERT_FALSE(mixed);
  EXPECT_EQ(mixed.error().code(), ErrorCode::source_changed);
  files.corrupt("/out/part-00000/weights.json", 8, std::byte{1});
  const auto damaged = KnownWeights().read_published(files, "/out", 1);
  ASSERT_FALSE(damaged);
  EXPECT_EQ(damaged.error().code(), ErrorCode::corrupt);
}

}  // namespace
}  // namespace librarian::ingest
