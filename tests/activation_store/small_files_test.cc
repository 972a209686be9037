#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "activation_store/array_metadata.h"
#include "activation_store/array_writer.h"
#include "activation_store/store_files.h"
#include "activation_store/store_names.h"
#include "tests/support/memory_file_system.h"

namespace librarian::activation_store {
namespace {

using librarian::testing::MemoryFileSystem;
using librarian::testing::Survival;
using ::testing::HasSubstr;

JobFile some_job() {
  JobFile job;
  job.identity = {{"dtype", "bfloat16"}, {"tokens", 12}};
  job.identity_digest = std::string(64, 'a');
  job.parts = {{0, 2, 30}, {2, 1, 100}};
  return job;
}

PartFile some_part() {
  PartFile part;
  part.range = {2, 1, 100};
  part.hidden_size = 64;
  part.captures = {"embed", "blocks.0.resid_pre"};
  part.aliases = {{"blocks.0.resid_pre", "embed"}};
  part.device_kind = "cpu-avx512";
  part.zstd_version = "1.5.4";
  part.verified = "stream";
  part.files = {{"embed/c/0/0", 1234567890123, 0xFFFFFFFF}, {"embed/zarr.json", 700, 0}};
  ArrayRecord array;
  array.name = "embed";
  array.shape = {100, 64};
  array.dtype = "bfloat16";
  array.rows_xxh3 = xxh3_128("rows");
  array.nan_count = 3;
  array.inf_count = 4;
  array.raw_bytes = 12800;
  array.stored_bytes = 9000;
  part.arrays = {array};
  return part;
}

PartTokens some_tokens() {
  PartTokens tokens;
  tokens.input_ids = {5, 6, 7, 8};
  tokens.offsets = {0, 1, 4};
  tokens.loss_mask = {{0, 1, 1, 0}};
  tokens.sample_index = {10, 11};
  return tokens;
}

// Goal: a sealed document comes back as it was, with the seal where the format puts it.
TEST(SealedJson, RoundTripsWithTheSealInAttributesOrOnTop) {
  const Json plain = {{"b", 1}, {"a", {{"x", "y"}}}};
  const Json group = {{"attributes", {{"k", 1.5}}}, {"node_type", "group"}};
  EXPECT_EQ(open_sealed_json(seal_json(plain), "f").value(), plain);
  EXPECT_EQ(open_sealed_json(seal_json(group), "f").value(), group);
  EXPECT_TRUE(Json::parse(seal_json(plain)).contains("xxh3"));
  EXPECT_TRUE(Json::parse(seal_json(group))["attributes"].contains("xxh3"));
  EXPECT_FALSE(Json::parse(seal_json(group)).contains("xxh3"));
  EXPECT_EQ(seal_json(plain), seal_json(plain));
  const std::string zero(32, '0');  // a value that looks like the placeholder
  const Json zeros = {{"before", zero}, {"attributes", {{"k", zero}}}, {"after", {zero, zero}}};
  EXPECT_EQ(open_sealed_json(seal_json(zeros), "f").value(), zeros);
}

// Goal: no change of a byte, not even of white space or of the seal, goes unseen.
// Method: every byte of a sealed text takes several other values; every truncation.
TEST(SealedJson, RefusesEveryChangedByte) {
  const std::string text = seal_json({{"name", "x"}, {"list", {1, 2, 3}}, {"text", "\"xxh3\": "}});
  ASSERT_TRUE(open_sealed_json(text, "f"));
  for (std::size_t i = 0; i < text.size(); ++i) {
    for (const unsigned flip : {1U, 2U, 0x20U, 0x80U}) {
      std::string damaged = text;
      damaged[i] = static_cast<char>(static_cast<unsigned char>(damaged[i]) ^ flip);
      const auto opened = open_sealed_json(damaged, "file.json");
      ASSERT_FALSE(opened) << i << " " << flip;
      EXPECT_EQ(opened.error().code(), ErrorCode::corrupt);
      EXPECT_THAT(opened.error().message(), HasSubstr("file.json"));
    }
    EXPECT_FALSE(open_sealed_json(std::string_view(text).substr(0, i), "f"));
  }
  EXPECT_FALSE(open_sealed_json(text + " ", "f"));
  EXPECT_FALSE(open_sealed_json("{}", "f"));
  EXPECT_FALSE(open_sealed_json("", "f"));
}

TEST(JobFile, RoundTripsAndRefusesAPartitionWithGaps) {
  MemoryFileSystem files;
  ASSERT_TRUE(files.make_directory("/s"));
  EXPECT_EQ(read_job_file(files, "/s").error().code(), ErrorCode::not_found);
  JobFile job = some_job();
  ASSERT_TRUE(replace_file(files, "/s/job.json", job_file_text(job)));
  const auto read = read_job_file(files, "/s");
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(read->identity, job.identity);
  EXPECT_EQ(read->identity_digest, job.identity_digest);
  EXPECT_EQ(read->parts, job.parts);
  job.parts[1].first_sample = 3;
  ASSERT_TRUE(replace_file(files, "/s/job.json", job_file_text(job)));
  EXPECT_EQ(read_job_file(files, "/s").error().code(), ErrorCode::corrupt);
}

// Goal: a later format asks for a newer program instead of being called damage.
TEST(JobFile, OfALaterVersionIsRefusedAsSuch) {
  MemoryFileSystem files;
  ASSERT_TRUE(files.make_directory("/s"));
  Json later = open_sealed_json(job_file_text(some_job()), "f").value();
  later["librarian_job"] = 2;
  ASSERT_TRUE(replace_file(files, "/s/job.json", seal_json(later)));
  EXPECT_EQ(read_job_file(files, "/s").error().code(), ErrorCode::bad_input);
}

TEST(PartFile, RoundTripsEveryField) {
  MemoryFileSystem files;
  ASSERT_TRUE(files.make_directory("/p"));
  const PartFile part = some_part();
  ASSERT_TRUE(replace_file(files, "/p/zarr.json", part_file_text(part)));
  const auto read = read_part_file(files, "/p");
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(read->range, part.range);
  EXPECT_EQ(read->hidden_size, part.hidden_size);
  EXPECT_EQ(read->captures, part.captures);
  EXPECT_EQ(read->aliases, part.aliases);
  EXPECT_EQ(read->device_kind, part.device_kind);
  EXPECT_EQ(read->zstd_version, part.zstd_version);
  EXPECT_EQ(read->verified, part.verified);
  EXPECT_EQ(read->files, part.files);
  ASSERT_EQ(read->arrays.size(), 1U);
  EXPECT_EQ(part_file_text(*read), part_file_text(part));
}

// Goal: a manifest cannot lead a reader out of the part, or name two truths.
TEST(PartFile, RefusesHostileManifests) {
  MemoryFileSystem files;
  ASSERT_TRUE(files.make_directory("/p"));
  const auto refused = [&](const PartFile& part) {
    EXPECT_TRUE(replace_file(files, "/p/zarr.json", part_file_text(part)));
    const auto read = read_part_file(files, "/p");
    return !read && read.error().code() == ErrorCode::corrupt;
  };
  EXPECT_FALSE(refused(some_part()));
  for (const char* const path :
       {"", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".", "a\\b", "a b", "embed/c/0/0\n"}) {
    PartFile part = some_part();
    part.files[0].path = path;
    EXPECT_TRUE(refused(part)) << path;
    part = some_part();
    part.aliases.clear();
    part.arrays[0].name = path;
    EXPECT_TRUE(refused(part)) << path;
  }
  PartFile twice = some_part();
  twice.files.push_back(twice.files[0]);
  EXPECT_TRUE(refused(twice));
  PartFile nowhere = some_part();
  nowhere.aliases["x"] = "blocks.9.resid_post";
  EXPECT_TRUE(refused(nowhere));
}

TEST(ArrayMetadata, RoundTripsAndRefusesWhatTheWriterWouldNotWrite) {
  const ArrayLayout layout{100, 64, StoredType::bf16, Codec::zstd, 8, 32};
  const auto parsed = parse_array_metadata(array_metadata_text("embed", layout), "f");
  ASSERT_TRUE(parsed) << parsed.error().message();
  EXPECT_EQ(parsed->capture, "embed");
  EXPECT_EQ(array_metadata_text("embed", parsed->layout), array_metadata_text("embed", layout));
  const Json good = open_sealed_json(array_metadata_text("embed", layout), "f").value();
  const auto refused = [&](const char* pointer, const Json& value) {
    Json changed = good;
    changed[Json::json_pointer(pointer)] = value;
    const auto result = parse_array_metadata(seal_json(changed), "f");
    return !result && result.error().code() == ErrorCode::corrupt;
  };
  EXPECT_TRUE(refused("/shape/0", 0));
  EXPECT_TRUE(refused("/shape/0", -1));
  EXPECT_TRUE(refused("/shape/0", ~std::uint64_t{0}));
  EXPECT_TRUE(refused("/shape/1", std::uint64_t{1} << 63U));
  EXPECT_TRUE(refused("/shape/2", 1));
  EXPECT_TRUE(refused("/data_type", "float16"));
  EXPECT_TRUE(refused("/fill_value", 0));
  EXPECT_TRUE(refused("/chunk_grid/configuration/chunk_shape/0", 33));
  EXPECT_TRUE(refused("/chunk_grid/configuration/chunk_shape/1", 63));
  EXPECT_TRUE(refused("/chunk_grid/name", "rectilinear"));
  EXPECT_TRUE(refused("/codecs/0/configuration/chunk_shape/0", 3));
  EXPECT_TRUE(refused("/codecs/0/configuration/index_location", "start"));
  EXPECT_TRUE(refused("/codecs/0/configuration/codecs/1/configuration/blocksize", 1));
  EXPECT_TRUE(refused("/codecs/1", {{"name", "gzip"}}));
  EXPECT_TRUE(refused("/attributes/dtype", "float16"));
  EXPECT_TRUE(refused("/attributes/dtype", 3));
  EXPECT_TRUE(refused("/attributes/lossy", {{"mantissa_bits", 5}}));
  EXPECT_TRUE(refused("/storage_transformers", Json::array()));
  EXPECT_FALSE(refused("/attributes/note", "a later version may say more"));
  EXPECT_TRUE(refused("/attributes/lossy", {{"keep_mantissa_bits", 2}}));
  EXPECT_TRUE(refused("/attributes/lossy", {{"keep_mantissa_bits", 7}}));
  EXPECT_TRUE(refused("/attributes/lossy", {{"fp8", "e4m3fn"}, {"scales", "embed.scales"}}));
  EXPECT_FALSE(refused("/attributes/lossy", {{"keep_mantissa_bits", 5}}));
  for (const char* const path : {"", "rows_loss", "tokens/", "tokens/input_ids", "tokens/rows_",
                                 "tokens/rows_loss/..", "../tokens/rows_loss"}) {
    EXPECT_TRUE(refused("/attributes/rows", path)) << path;
  }
  EXPECT_TRUE(refused("/attributes/rows", 3));
  EXPECT_FALSE(refused("/attributes/rows", "tokens/rows_m4_m1"));
}

// Catches: an array of no rows that is not told from a damaged one; a type with another's fill.
TEST(ArrayMetadata, OfEveryKindRoundTrips) {
  for (const StoredType type :
       {StoredType::bf16, StoredType::f16, StoredType::f32, StoredType::f8_e4m3, StoredType::i32}) {
    for (const bool is_vector : {false, true}) {
      for (const std::uint64_t rows : {0U, 100U}) {
        const ArrayLayout layout{rows, is_vector ? 1U : 64U, type, Codec::zstd, 8, 32, is_vector};
        const ArrayAttributes attributes{"tokens/rows_loss", 0};
        const std::string text = array_metadata_text("embed", layout, attributes);
        const auto parsed = parse_array_metadata(text, "f");
        ASSERT_TRUE(parsed) << parsed.error().message();
        EXPECT_EQ(parsed->layout.shape(), layout.shape());
        EXPECT_EQ(parsed->layout.type, type);
        EXPECT_EQ(parsed->attributes, attributes);
      }
    }
  }
}

TEST(KeptRows, RiseWithinThePart) {
  EXPECT_TRUE(check_rows({}, 5, "f"));
  EXPECT_TRUE(check_rows({0, 4}, 5, "f"));
  EXPECT_FALSE(check_rows({0, 5}, 5, "f"));
  EXPECT_FALSE(check_rows({-1, 2}, 5, "f"));
  EXPECT_FALSE(check_rows({2, 2}, 5, "f"));
  EXPECT_FALSE(check_rows({3, 2}, 5, "f"));
}

TEST(PartTokens, NeedNoMask) {
  MemoryFileSystem files;
  ASSERT_TRUE(files.make_directory("/p"));
  PartTokens tokens = some_tokens();
  tokens.loss_mask.reset();
  ASSERT_TRUE(write_part_tokens(files, "/p", tokens, "77"));
  const auto read = read_part_tokens(files, "/p");
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_FALSE(read->loss_mask);
  EXPECT_EQ(read->input_ids, tokens.input_ids);
}

// Goal: once tokens are written, a power cut keeps them, complete.
TEST(PartTokens, SurviveAPowerCutOnceWritten) {
  MemoryFileSystem files;
  ASSERT_TRUE(make_directories(files, "/p"));
  const auto records = write_part_tokens(files, "/p", some_tokens(), "77");
  ASSERT_TRUE(records);
  const auto before = files.snapshot();
  std::map<std::string, std::uint64_t> listed;
  for (const ArrayRecord& record : *records) {
    for (const FileRecord& file : record.files) {
      listed["/p/" + file.path] = file.size;
    }
  }
  EXPECT_EQ(listed.size(), before.size());
  for (const auto& [path, content] : before) {
    EXPECT_EQ(listed[path], content.size()) << path;
  }
  files.restart(Survival::durable_only);
  EXPECT_EQ(files.snapshot(), before);
  const auto read = read_part_tokens(files, "/p");
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(read->input_ids, some_tokens().input_ids);
  EXPECT_EQ(read->offsets, some_tokens().offsets);
  EXPECT_EQ(read->loss_mask, some_tokens().loss_mask);
  EXPECT_EQ(read->sample_index, some_tokens().sample_index);
}

// Goal: arrays of more than one chunk are read back whole, padding checked.
TEST(PartTokens, SpanSeveralChunks) {
  MemoryFileSystem files;
  ASSERT_TRUE(files.make_directory("/p"));
  PartTokens tokens;
  for (std::int32_t i = 0; i < (1 << 20) + 5; ++i) {
    tokens.input_ids.push_back(i);
  }
  tokens.offsets = {0, (1 << 20) + 5};
  tokens.sample_index = {0};
  ASSERT_TRUE(write_part_tokens(files, "/p", tokens, "77"));
  EXPECT_EQ(files.info("/p/tokens/input_ids/c/1")->size, (4U << 20U) + 4);
  EXPECT_EQ(read_part_tokens(files, "/p")->input_ids, tokens.input_ids);
}

TEST(PartTokens, RefuseLengthsAndOffsetsThatDoNotFit) {
  MemoryFileSystem files;
  ASSERT_TRUE(files.make_directory("/p"));
  const auto refused = [&](auto change) {
    PartTokens tokens = some_tokens();
    change(tokens);
    const auto written = write_part_tokens(files, "/p", tokens, "77");
    return !written && written.error().code() == ErrorCode::invalid_argument;
  };
  EXPECT_TRUE(refused([](PartTokens& t) { t.offsets = {0, 4, 4}; }));
  EXPECT_TRUE(refused([](PartTokens& t) { t.offsets = {0, 1, 3}; }));
  EXPECT_TRUE(refused([](PartTokens& t) { t.offsets = {1, 2, 4}; }));
  EXPECT_TRUE(refused([](PartTokens& t) { t.offsets = {}; }));
  EXPECT_TRUE(refused([](PartTokens& t) { t.sample_index.pop_back(); }));
  EXPECT_TRUE(refused([](PartTokens& t) { t.loss_mask->pop_back(); }));
  EXPECT_TRUE(refused([](PartTokens& t) {
    t.input_ids.clear();
    t.offsets = {0};
  }));
}

TEST(StoreNames, FollowTheGrammar) {
  for (const char* const name : {"embed", "final.pre_norm", "final.post_norm",
                                 "blocks.0.resid_post", "blocks.12.attn.q", "blocks.999.mlp_out"}) {
    EXPECT_TRUE(is_array_name(name)) << name;
  }
  for (const char* const name :
       {"", "tokens", "blocks.1", "blocks..x", "blocks.01.x", "blocks.1.", "blocks.1..x",
        "blocks.1.x.", "blocks.-1.x", "blocks.1./x", "blocks.1.x/..", "blocks.1.X", "embed/c",
        "blocks.1234567.x", ".journal", "final.other"}) {
    EXPECT_FALSE(is_array_name(name)) << name;
  }
  EXPECT_EQ(part_directory_name(7), "part-00007");
  EXPECT_EQ(part_directory_name(123456), "part-123456");
  EXPECT_EQ(parse_part_directory_name("part-00007"), 7U);
  EXPECT_EQ(parse_part_directory_name("part-00000"), 0U);
  EXPECT_EQ(parse_part_directory_name("part-123456"), 123456U);
  for (const char* const name :
       {"part-7", "part-", "part-0000x", "part-012345", "xpart-00007", "part-00007.partial-ab"}) {
    EXPECT_FALSE(parse_part_directory_name(name)) << name;
  }
}

// Goal: clean-up takes what an interrupted writer leaves, and nothing else, ever.
TEST(RemoveArray, TakesOnlyNamesOfItsOwnGrammar) {
  MemoryFileSystem files;
  const auto put = [&](const std::string& path) {
    ASSERT_TRUE(make_directories(files, parent_path(path)));
    ASSERT_TRUE(files.create(path));
  };
  for (const char* const path :
       {"/p/embed/zarr.json", "/p/embed/zarr.json.partial-ab12", "/p/embed/c/0/0",
        "/p/embed/c/10/0.partial-ff", "/p/embed/c/3", "/p/embed/c/4.partial-ab", "/p/keep"}) {
    put(path);
  }
  ASSERT_TRUE(remove_array(files, "/p", "embed"));
  EXPECT_EQ(files.list("/p").value(), std::vector<std::string>{"keep"});
  ASSERT_TRUE(remove_array(files, "/p", "embed"));  // not there is fine
  EXPECT_EQ(remove_array(files, "/p", "../p").error().code(), ErrorCode::invalid_argument);
  for (const char* const foreign :
       {"/p/embed/notes.txt", "/p/embed/c/0/1", "/p/embed/c/x/0", "/p/embed/c/0/0.partial-XY",
        "/p/embed/c/03", "/p/embed/c/4.partial-XY", "/p/embed/c/4.x", "/p/embed/zarr.json.partial-",
        "/p/embed/c/00/0", "/p/embed/d/0/0"}) {
    put("/p/embed/zarr.json");
    put("/p/embed/c/0/0");
    put(foreign);
    const auto removed = remove_array(files, "/p", "embed");
    ASSERT_FALSE(removed) << foreign;
    EXPECT_EQ(removed.error().code(), ErrorCode::conflict);
    const std::string& message = removed.error().message();
    EXPECT_EQ(std::string(foreign).rfind(message.substr(0, message.find(' ')), 0), 0U) << message;
    EXPECT_THAT(message, ::testing::StartsWith("/p/embed/"));
    EXPECT_TRUE(files.info("/p/embed/zarr.json")) << "nothing may go before all was looked at";
    ASSERT_TRUE(files.remove_file(foreign));
    for (const char* const parent :
         {"/p/embed/c/x", "/p/embed/c/00", "/p/embed/d/0", "/p/embed/d"}) {
      static_cast<void>(files.remove_directory(parent));
    }
    ASSERT_TRUE(remove_array(files, "/p", "embed")) << foreign;
  }
  put("/p/embed/c");  // a file where a directory belongs
  EXPECT_EQ(remove_array(files, "/p", "embed").error().code(), ErrorCode::conflict);
}

}  // namespace
}  // namespace librarian::activation_store
