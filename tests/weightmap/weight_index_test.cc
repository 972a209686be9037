// Goal: an index can only send us to a weight file beside it.
// Method: a table of hostile names, each tried as a name and inside an index.
#include "weightmap/weight_index.h"

#include <gtest/gtest.h>

#include "base/json.h"

namespace librarian::weightmap {
namespace {

std::vector<std::string> hostile_names() {
  using namespace std::string_literals;
  return {"",
          ".",
          "..",
          "/",
          "\\",
          ".safetensors",
          "..safetensors",
          ".hidden.safetensors",
          "../x.safetensors",
          "../../etc/x.safetensors",
          "a/../x.safetensors",
          "./x.safetensors",
          "a/x.safetensors",
          "a//x.safetensors",
          "/x.safetensors",
          "//host/share/x.safetensors",
          "/etc/passwd",
          "x.safetensors/",
          "x.safetensors/.",
          "x.safetensors/..",
          "..\\x.safetensors",
          "a\\x.safetensors",
          "\\x.safetensors",
          "\\\\host\\x.safetensors",
          "\\\\?\\C:\\x.safetensors",
          "C:x.safetensors",
          "C:\\x.safetensors",
          "c:/x.safetensors",
          "x.safetensors:stream",
          "x:y.safetensors",
          "\0.safetensors"s,
          "x\0.safetensors"s,
          "x.safetensors\0"s,
          "x.safetensors\0.txt"s,
          "x.safetensors\n",
          "\nx.safetensors",
          "x\r.safetensors",
          "x\t.safetensors",
          " x.safetensors",
          "x.safetensors ",
          "x y.safetensors",
          "x\x1B[2J.safetensors",
          "x\x7F.safetensors",
          "x%2f.safetensors",
          "%2e%2e%2fx.safetensors",
          "..%2Fx.safetensors",
          "x%00.safetensors",
          "x?.safetensors",
          "x.safetensors?download=true",
          "x.safetensors#fragment",
          "x#y.safetensors",
          "~/x.safetensors",
          "~root.safetensors",
          "$HOME.safetensors",
          "${x}.safetensors",
          "`id`.safetensors",
          "$(id).safetensors",
          "x;id.safetensors",
          "x|y.safetensors",
          "x&y.safetensors",
          "x>y.safetensors",
          "x*.safetensors",
          "x[0].safetensors",
          "x{a,b}.safetensors",
          "x'.safetensors",
          "x\".safetensors",
          "x,y.safetensors",
          "x=y.safetensors",
          "x+y.safetensors",
          "x@y.safetensors",
          "user@host:x.safetensors",
          "https://evil.test/x.safetensors",
          "file:///x.safetensors",
          "s3://b/x.safetensors",
          "\xE2\x80\xA5/x.safetensors",
          "\xEF\xBC\x8E\xEF\xBC\x8E\xEF\xBC\x8Fx.safetensors",
          "\xE2\x88\x95x.safetensors",
          "\xC3\xA4.safetensors",
          "x\xE2\x80\xAE.safetensors",
          "\xEF\xBB\xBFx.safetensors",
          "x.bin",
          "x.safetensors.bin",
          "x.safetensors.index.json",
          "x.SAFETENSORS",
          "x.Safetensors",
          "x.safetensor",
          "xsafetensors",
          "safetensors",
          "x.pt",
          "config.json",
          std::string(4096, 'x') + ".safetensors",
          std::string(244, 'x') + ".safetensors",
          std::string(2000, '.') + ".safetensors"};
}

// Catches: an allow-list that grew, or a check of the suffix alone.
TEST(WeightFileName, OfAHostileKindIsRefused) {
  const std::vector<std::string> names = hostile_names();
  ASSERT_GE(names.size(), 60U);
  for (const std::string& name : names) {
    EXPECT_FALSE(is_weight_file_name(name)) << name.substr(0, 100);
  }
  for (int c = 0; c < 256; ++c) {
    const std::string name = std::string("a") + static_cast<char>(c) + "b.safetensors";
    const bool allowed = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                         (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
    EXPECT_EQ(is_weight_file_name(name), allowed) << "byte " << c;
  }
}

TEST(WeightFileName, OfPublishedModelsIsAccepted) {
  for (const std::string name :
       {"model.safetensors", "model-00001-of-00030.safetensors", "a.safetensors",
        "consolidated.00.safetensors", "model_00001.safetensors", "MODEL-1.safetensors",
        "pytorch_model-00001-of-00002.safetensors", "model.fp16.safetensors", "0.safetensors"}) {
    EXPECT_TRUE(is_weight_file_name(name)) << name;
  }
  EXPECT_TRUE(is_weight_file_name(std::string(243, 'x') + ".safetensors"));
}

TEST(WeightIndex, WithAHostileNameIsRefusedAsAWhole) {
  for (const std::string& name : hostile_names()) {
    const Json document = {{"weight_map", {{"good", "a.safetensors"}, {"tensor.x", name}}}};
    const auto parsed =
        parse_weight_index(document.dump(-1, ' ', true, Json::error_handler_t::replace), "INDEX");
    ASSERT_FALSE(parsed) << name.substr(0, 100);
    EXPECT_EQ(parsed.error().code(), ErrorCode::bad_input);
    EXPECT_EQ(parsed.error().message().find("INDEX: "), 0U);
    for (const char c : parsed.error().message()) {
      EXPECT_GE(static_cast<unsigned char>(c), ' ') << name.substr(0, 100);
    }
  }
}

TEST(WeightIndex, ThatIsNotOneIsRefused) {
  for (const char* text : {
           "",
           "[]",
           "{}",
           R"({"weight_map": null})",
           R"({"weight_map": []})",
           R"({"weight_map": {}})",
           R"({"weight_map": "a.safetensors"})",
           R"({"weight_map": {"a": 1}})",
           R"({"weight_map": {"a": null}})",
           R"({"weight_map": {"a": ["a.safetensors"]}})",
           R"({"weight_map": {"a": {"file": "a.safetensors"}}})",
           R"({"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}})",
           R"({"weight_map": {"a": "a.safetensors"}, "weight_map": {"a": "b.safetensors"}})",
           R"({"weight_map": {"a": "a.safetensors"}} x)",
           R"({"weight_map": {"a": "a.safeten)",
           "<html></html>",
           "version https://git-lfs.github.com/spec/v1\n",
       }) {
    const auto parsed = parse_weight_index(text, "INDEX");
    ASSERT_FALSE(parsed) << text;
    EXPECT_EQ(parsed.error().code(), ErrorCode::bad_input) << text;
  }
}

TEST(WeightIndex, MapsEveryTensorToItsFile) {
  const auto parsed = parse_weight_index(
      R"({"metadata": {"total_size": 12}, "weight_map": {"b": "2.safetensors", "a": "1.safetensors"}}
)",
      "INDEX");
  ASSERT_TRUE(parsed) << parsed.error().message();
  EXPECT_EQ(*parsed,
            (std::map<std::string, std::string>{{"a", "1.safetensors"}, {"b", "2.safetensors"}}));
}

TEST(WeightIndex, OfALargeModelIsAccepted) {
  Json map = Json::object();
  auto& members = map.get_ref<Json::object_t&>();
  for (int i = 0; i < 200'000; ++i) {
    members.Json::object_t::Container::emplace_back("model.layers." + std::to_string(i),
                                                    "m.safetensors");
  }
  const auto parsed = parse_weight_index(R"({"weight_map":)" + map.dump() + "}", "INDEX");
  ASSERT_TRUE(parsed) << parsed.error().message();
  EXPECT_EQ(parsed->size(), 200'000U);
}

}  // namespace
}  // namespace librarian::weightmap
