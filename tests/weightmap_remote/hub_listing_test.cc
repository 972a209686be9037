// Which files a hub says a model has: pages of its answer and the links between them.

#include "weightmap/remote/hub_listing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace librarian::weightmap::remote {
namespace {

using ::testing::HasSubstr;

constexpr const char* kSha256 = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

HubListing listing_of(const std::string& page) {
  HubListing listing;
  const auto added = add_hub_page(page, "PAGE", listing);
  EXPECT_TRUE(added) << added.error().message();
  return listing;
}

TEST(HubListing, TakesSizesAndDigestsOfFiles) {
  EXPECT_EQ(
      listing_of(std::string(R"([
    {"type": "directory", "oid": "1", "size": 0, "path": "sub"},
    {"type": "file", "oid": "2", "size": 7, "path": "config.json"},
    {"type": "file", "oid": "3", "size": 5000000000, "path": "sub/model.safetensors",
     "lfs": {"oid": ")") +
                 kSha256 + R"(", "size": 5000000000, "pointerSize": 135}, "xetHash": "x"}])"),
      (HubListing{{"config.json", {7, ""}}, {"sub/model.safetensors", {5000000000, kSha256}}}));
  EXPECT_EQ(listing_of("[]"), HubListing{});
}

// Goal: whatever is no such page is refused, and a second page never changes what the first says.
TEST(HubListing, RefusesWhatIsNoPage) {
  const std::string file = R"({"type": "file", "size": 7, "path": "a"})";
  for (const std::string& page : std::vector<std::string>{
           "", "{}", "[", "[1]", "[{}]", R"([{"type": "file", "path": "a"}])",
           R"([{"type": "file", "size": -1, "path": "a"}])",
           R"([{"type": "file", "size": 7, "path": 1}])", "[" + file + "," + file + "]",
           R"([{"type": "file", "size": 7, "path": "a", "lfs": {"oid": "12", "size": 7}}])",
           R"([{"type": "file", "size": 7, "path": "a", "lfs": {"oid": ")" + std::string(kSha256) +
               R"("}}])",
           R"([{"type": "file", "size": 7, "path": ")" + std::string(5000, 'a') + R"("}])",
           std::string(100, '[')}) {
    HubListing listing;
    const auto added = add_hub_page(page, "PAGE", listing);
    ASSERT_FALSE(added) << page.substr(0, 100);
    EXPECT_EQ(added.error().code(), ErrorCode::bad_input);
    EXPECT_THAT(added.error().message(), HasSubstr("PAGE"));
  }
  HubListing listing{{"a", {8, ""}}};
  EXPECT_FALSE(add_hub_page("[" + file + "]", "PAGE", listing));
  EXPECT_EQ(listing.at("a").size, 8U);
}

// Goal: the next page is found in every form of the field, and nothing but its cursor is taken.
TEST(HubListing, FindsTheNextPagesCursor) {
  for (const char* link : {
           R"(<https://hub/api/models/o/n/tree/c?recursive=true&cursor=ab%3D>; rel="next")",
           R"(<https://elsewhere/?cursor=ab%3D#x>;rel=next)",
           R"(<https://hub/?cursor=first>; rel="first", </tree?cursor=ab%3D> ; a=1; rel="next")",
       }) {
    const auto cursor = next_hub_page(link);
    ASSERT_TRUE(cursor) << link;
    EXPECT_EQ(cursor->value_or("none"), "ab%3D") << link;
  }
  for (const char* last :
       {"", "<", "<https://hub/?cursor=a", R"(<https://hub/?cursor=a>; rel="prev")",
        "https://hub/?cursor=a; rel=next", "<https://hub/?cursor=a>"}) {
    const auto cursor = next_hub_page(last);
    ASSERT_TRUE(cursor) << last;
    EXPECT_FALSE(*cursor) << last;
  }
  for (const char* bad : {"<https://hub/>; rel=next", "<https://hub/?cursor=>; rel=next",
                          "<https://hub/?cursor=a b>; rel=next", "<?>; rel=next",
                          "<https://hub/?page=2&xcursor=a>; rel=next"}) {
    EXPECT_FALSE(next_hub_page(bad)) << bad;
  }
}

TEST(HubListing, HoldsAnswersAgainstTheList) {
  ObjectInfo info;
  info.size = 7;
  EXPECT_TRUE(check_against_listing({7, kSha256}, info));
  EXPECT_EQ(info.sha256, kSha256);
  EXPECT_TRUE(check_against_listing({7, ""}, info));
  EXPECT_EQ(info.sha256, kSha256);
  for (const HubListedFile& other :
       {HubListedFile{8, kSha256}, HubListedFile{7, std::string(64, 'b')}}) {
    const auto same = check_against_listing(other, info);
    ASSERT_FALSE(same);
    EXPECT_EQ(same.error().code(), ErrorCode::source_changed);
  }
}

}  // namespace
}  // namespace librarian::weightmap::remote
