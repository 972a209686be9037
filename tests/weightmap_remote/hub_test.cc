// hf:// places: their names, and what a hub's answers make the transport do. No network: heads are
// fed to the origin as the curl transfer would.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "weightmap/remote/hub_files.h"
#include "weightmap/remote/hub_origin.h"
#include "weightmap/remote/hub_place.h"

namespace librarian::weightmap::remote {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

const std::string kCommit = "0123456789abcdef0123456789abcdef01234567";
const std::string kOther = "ffffffffffffffffffffffffffffffffffffffff";
const std::string kSha256(64, 'a');

Environment environment_of(std::map<std::string, std::string> values) {
  return [values = std::move(values)](const std::string& name) -> std::optional<std::string> {
    const auto found = values.find(name);
    return found == values.end() ? std::nullopt : std::optional(found->second);
  };
}

TEST(HubPlace, ReadsNamesRevisionsAndPaths) {
  const auto text = [](const char* place) { return parse_hub_place(place)->text(); };
  EXPECT_EQ(text("hf://org/name"), "hf://org/name@main");
  EXPECT_EQ(text("hf://org/name/"), "hf://org/name@main");
  EXPECT_EQ(text("hf://gpt2@v1.0"), "hf://gpt2@v1.0");
  EXPECT_EQ(text("hf://org/name@refs/pr/7"), "hf://org/name@refs/pr/7");
  const auto pinned = parse_hub_place("hf://org/name@" + kCommit + "/sub/a b.safetensors");
  ASSERT_TRUE(pinned);
  EXPECT_TRUE(pinned->pinned());
  EXPECT_EQ(pinned->path, "sub/a b.safetensors");
  for (const char* bad : {"hf://", "hf:///name", "hf://org//", "hf://../x", "hf://a/b/c",
                          "hf://org/na me", "hf://org/name@", "hf://org/name@a..b",
                          "hf://org/name@x y", "hf://org/name?x", "hf://org/name@a?revision"}) {
    EXPECT_FALSE(parse_uri(bad)) << bad;
  }
}

TEST(HubPlace, ReadsWhenSignedUrlsEnd) {
  const auto until = [](const char* query) {
    return signed_until({"https", std::string("https://cdn/x?") + query});
  };
  EXPECT_EQ(until("Expires=1764356661&Signature=x"), 1764356661);
  EXPECT_EQ(until("X-Amz-Date=20251128T190421Z&X-Amz-Expires=3600"), 1764356661 + 3600);
  EXPECT_EQ(until("a=1"), std::nullopt);
  EXPECT_EQ(until("Expires=never"), std::nullopt);
  EXPECT_EQ(until("X-Amz-Date=nonsense&X-Amz-Expires=3600"), std::nullopt);
}

class HubOriginTest : public ::testing::Test {
 protected:
  static TransferRequest file_request(const std::string& name = "model.safetensors") {
    TransferRequest request;
    request.uri = {"hf", "hf://org/name@" + kCommit + "/" + name};
    request.range = {0, 100};
    return request;
  }
  static ResponseHead head(int status, const std::vector<std::string>& fields) {
    ResponseHead head;
    EXPECT_TRUE(head.add_line("HTTP/1.1 " + std::to_string(status) + " x\r\n"));
    for (const std::string& field : fields) {
      EXPECT_TRUE(head.add_line(field + "\r\n"));
    }
    EXPECT_TRUE(head.add_line("\r\n"));
    return head;
  }
  /// What the transfer does after such an answer to `hop`.
  Result<std::optional<HttpHop>> follow(const TransferRequest& request, const HttpHop& hop,
                                        int status, const std::vector<std::string>& fields,
                                        std::uint32_t hop_number = 0) {
    const ResponseHead answered = head(status, fields);
    const HttpAnswer answer{request, hop, hop_number, answered, false};
    verdict_ = origin_.judge(answer);
    return origin_.after(answer, verdict_, "");
  }
  std::vector<std::string> redirect(const std::string& location, const std::string& commit) const {
    return {"Location: " + location, "X-Repo-Commit: " + commit,
            "X-Linked-Etag: \"" + kSha256 + "\"", "X-Linked-Size: 1000", "Content-Length: 0"};
  }
  /// Asks the hub and is sent to `location`.
  HttpHop resolve(const TransferRequest& request, const std::string& location) {
    const auto first = origin_.first_hop(request);
    EXPECT_TRUE(first);
    EXPECT_TRUE(origin_.resolves(*first));
    auto next = follow(request, *first, 302, redirect(location, kCommit));
    EXPECT_TRUE(next && *next);
    return **next;
  }

  std::int64_t now_ = 1'000'000;
  HubOrigin origin_{{environment_of({{"HF_ENDPOINT", "http://127.0.0.1:8000/"},
                                     {"HF_TOKEN", "hf_canary"},
                                     {"HOME", "/nowhere"}}),
                     [this] { return now_; }}};
  ResponseVerdict verdict_;
};

TEST_F(HubOriginTest, AsksTheResolverWithTheToken) {
  const auto hop = origin_.first_hop(file_request("a b.safetensors"));
  ASSERT_TRUE(hop);
  EXPECT_EQ(hop->url.text,
            "http://127.0.0.1:8000/org/name/resolve/" + kCommit + "/a%20b.safetensors");
  EXPECT_THAT(hop->headers, Contains("Authorization: Bearer hf_canary"));
}

TEST_F(HubOriginTest, ARevisionMustBePinnedFirst) {
  TransferRequest request = file_request();
  request.uri.text = "hf://org/name@main";
  EXPECT_FALSE(origin_.first_hop(request));
  request.document = true;
  request.uri.text = "hf://org/name@refs/pr/1?revision";
  EXPECT_EQ(origin_.first_hop(request)->url.text,
            "http://127.0.0.1:8000/api/models/org/name/revision/refs%2Fpr%2F1");
}

// Goal: one resolve per file; its signed URL serves all later ranges, without the token.
TEST_F(HubOriginTest, KeepsTheSignedUrl) {
  const TransferRequest request = file_request();
  const HttpHop first = resolve(request, "http://127.0.0.2:9/blob?Expires=1001000&sig=s");
  EXPECT_THAT(first.headers, IsEmpty());
  const auto again = origin_.first_hop(request);
  EXPECT_EQ(again->url.text, first.url.text);
  EXPECT_THAT(again->headers, IsEmpty());
  EXPECT_FALSE(origin_.resolves(*again));
  EXPECT_TRUE(origin_.resolves(*origin_.first_hop(file_request("other.safetensors"))));
}

// Goal: the URL is renewed before it ends, by one request, while others still use the old one.
TEST_F(HubOriginTest, RenewsTheSignedUrlBeforeItEnds) {
  const TransferRequest request = file_request();
  resolve(request, "http://127.0.0.2:9/blob?Expires=1001000");
  now_ += 799;
  EXPECT_FALSE(origin_.resolves(*origin_.first_hop(request)));
  now_ += 2;
  EXPECT_TRUE(origin_.resolves(*origin_.first_hop(request)));
  EXPECT_FALSE(origin_.resolves(*origin_.first_hop(request)));
  resolve(file_request("x"), "http://127.0.0.2:9/x?Expires=1001000");
}

TEST_F(HubOriginTest, AskAgainWhenTheSignedUrlIsRefused) {
  const TransferRequest request = file_request();
  const HttpHop old = resolve(request, "http://127.0.0.2:9/blob?sig=1");
  auto next = follow(request, old, 403, {"Content-Length: 0"});
  ASSERT_TRUE(next && *next);
  EXPECT_TRUE(origin_.resolves(**next));
  // Another request that still had the old URL takes the new one.
  resolve(request, "http://127.0.0.2:9/blob?sig=2");
  next = follow(request, old, 403, {"Content-Length: 0"});
  ASSERT_TRUE(next && *next);
  EXPECT_EQ((*next)->url.text, "http://127.0.0.2:9/blob?sig=2");
  // A new URL that is refused at once is no reason to ask for ever.
  next = follow(request, **next, 403, {"Content-Length: 0"}, 1);
  EXPECT_TRUE(next && !*next);
  EXPECT_EQ(verdict_.error->code(), ErrorCode::unavailable);
}

TEST_F(HubOriginTest, WhatTheHubSaysOfTheFileCounts) {
  const TransferRequest request = file_request();
  const HttpHop there = resolve(request, "http://127.0.0.2:9/blob");
  auto next = follow(request, there, 206,
                     {"Content-Range: bytes 0-99/1000", "Content-Length: 100", "ETag: \"cdn\""});
  EXPECT_FALSE(verdict_.error) << verdict_.error->message();
  EXPECT_EQ(verdict_.info.sha256, kSha256);
  EXPECT_EQ(verdict_.info.validator, '"' + kSha256 + '"');
  EXPECT_TRUE(verdict_.info.strong);
  EXPECT_EQ(verdict_.info.size, 1000U);
}

// Goal: a CDN that serves another file under the same URL is asked for anew, never believed.
TEST_F(HubOriginTest, AnotherFileBehindTheUrlIsNotTaken) {
  const TransferRequest request = file_request();
  HttpHop there = resolve(request, "http://127.0.0.2:9/blob");
  ASSERT_TRUE(follow(request, there, 206,
                     {"Content-Range: bytes 0-99/999", "Content-Length: 100", "ETag: \"cdn\""}));
  EXPECT_EQ(verdict_.error->code(), ErrorCode::unavailable);

  there = resolve(request, "http://127.0.0.2:9/blob");
  ASSERT_TRUE(follow(request, there, 206,
                     {"Content-Range: bytes 0-99/1000", "Content-Length: 100", "ETag: \"cdn\""}));
  EXPECT_FALSE(verdict_.error);
  ASSERT_TRUE(follow(request, there, 206,
                     {"Content-Range: bytes 0-99/1000", "Content-Length: 100", "ETag: \"new\""}));
  EXPECT_EQ(verdict_.error->code(), ErrorCode::unavailable);
}

TEST_F(HubOriginTest, AnotherCommitIsRefused) {
  const TransferRequest request = file_request();
  const auto first = origin_.first_hop(request);
  const auto next = follow(request, *first, 302, redirect("http://127.0.0.2:9/b", kOther));
  EXPECT_TRUE(next && !*next);
  EXPECT_EQ(verdict_.error->code(), ErrorCode::source_changed);
  EXPECT_THAT(verdict_.error->message(), HasSubstr(kOther));
}

TEST_F(HubOriginTest, AFileThatChangedUnderOneCommitIsRefused) {
  TransferRequest request = file_request();
  request.expected = ObjectInfo{1000, "\"" + std::string(64, 'b') + "\"", true};
  const auto first = origin_.first_hop(request);
  const auto next = follow(request, *first, 302, redirect("http://127.0.0.2:9/b", kCommit));
  ASSERT_FALSE(next);
  EXPECT_EQ(next.error().code(), ErrorCode::source_changed);
}

TEST_F(HubOriginTest, SmallFilesComeFromTheHubItself) {
  const TransferRequest request = file_request("config.json");
  const auto first = origin_.first_hop(request);
  const auto next =
      follow(request, *first, 307,
             {"Location: /api/resolve-cache/models/org/name/" + kCommit + "/config.json?etag=x",
              "Content-Length: 0"});
  ASSERT_TRUE(next && *next);
  // The very same scheme, host and port: the token may go there.
  EXPECT_THAT((*next)->headers, Contains("Authorization: Bearer hf_canary"));
  EXPECT_FALSE(origin_.resolves(**next));
}

TEST_F(HubOriginTest, TheTokenStaysHome) {
  for (const char* elsewhere :
       {"http://127.0.0.2:8000/x", "http://127.0.0.1:8001/x", "http://localhost:8000/x",
        "http://hub.127.0.0.1.example.org:8000/x", "//127.0.0.2:8000/x", "https://127.0.0.1:8000/x",
        "http://127.0.0.1/x", "HTTP://127.0.0.3:8000/x"}) {
    const TransferRequest request = file_request(std::string("f") + elsewhere[8]);
    const auto first = origin_.first_hop(request);
    const auto next = follow(request, *first, 302, {std::string("Location: ") + elsewhere});
    if (next && *next) {
      EXPECT_THAT((*next)->headers, IsEmpty()) << elsewhere;
    } else {
      EXPECT_FALSE(next) << elsewhere;  // Refused altogether.
    }
  }
}

TEST_F(HubOriginTest, RefusalsSayWhatToDo) {
  const TransferRequest request = file_request();
  const auto hop = origin_.first_hop(request);
  const auto said = [&](int status, std::vector<std::string> fields) {
    fields.push_back("Content-Length: 0");
    const auto next = follow(request, *hop, status, fields);
    EXPECT_FALSE(next);
    EXPECT_EQ(next.error().code(), ErrorCode::bad_input);
    EXPECT_THAT(next.error().message(), Not(HasSubstr("canary")));
    return next.error().message();
  };
  EXPECT_THAT(said(403, {"X-Error-Code: GatedRepo"}),
              HasSubstr("accept its licence at http://127.0.0.1:8000/org/name"));
  EXPECT_THAT(said(401, {"X-Error-Code: RepoNotFound"}), HasSubstr("no model org/name"));
  EXPECT_THAT(said(404, {"X-Error-Code: RevisionNotFound"}), HasSubstr("has no revision"));
  EXPECT_THAT(said(401, {}), HasSubstr("does not accept the token"));
  const auto missing = follow(request, *hop, 404, {"X-Error-Code: EntryNotFound"});
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code(), ErrorCode::not_found);
}

class HubFilesTest : public ::testing::Test {
 protected:
  HubFilesTest() {
    std::string name = ::testing::TempDir() + "hub_files_XXXXXX";
    root_ = ::mkdtemp(name.data());
  }
  ~HubFilesTest() override { std::filesystem::remove_all(root_); }
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + "/" + path).parent_path());
    std::ofstream(root_ + "/" + path) << text;
  }
  std::string root_;
};

TEST_F(HubFilesTest, TheTokenComesFromTheEnvironmentOrAFile) {
  write("home/.cache/huggingface/token", "hf_file\n");
  write("hf/token", " hf_home \n");
  write("t", "hf_path");
  const std::string home = root_ + "/home";
  const auto token = [&](std::map<std::string, std::string> values) {
    values["HOME"] = home;
    return find_hub_token(environment_of(values));
  };
  EXPECT_EQ(*token({}), "hf_file");
  EXPECT_EQ(*token({{"HF_TOKEN", "hf_env"}}), "hf_env");
  EXPECT_EQ(*token({{"HF_HOME", root_ + "/hf"}}), "hf_home");
  EXPECT_EQ(*token({{"HF_TOKEN_PATH", root_ + "/t"}}), "hf_path");
  EXPECT_EQ(*token({{"HF_TOKEN_PATH", root_ + "/none"}}), "");
  const auto bad = token({{"HF_TOKEN", "two\r\nEvil: 1"}});
  ASSERT_FALSE(bad);
  EXPECT_THAT(bad.error().message(), Not(HasSubstr("Evil")));
}

TEST_F(HubFilesTest, FindsSnapshotsByCommit) {
  const auto environment = environment_of({{"HF_HUB_CACHE", root_}});
  HubPlace place = *parse_hub_place("hf://org/name@" + kCommit);
  EXPECT_EQ(cached_snapshot(environment, place), std::nullopt);
  write("models--org--name/blobs/b", "{}");
  write("models--org--name/refs/main", kCommit);
  const std::string snapshot = root_ + "/models--org--name/snapshots/" + kCommit;
  std::filesystem::create_directories(snapshot);
  std::filesystem::create_symlink("../../blobs/b", snapshot + "/config.json");
  EXPECT_EQ(cached_snapshot(environment, place), std::nullopt);  // Only the config was looked at.
  std::filesystem::create_symlink("../../blobs/b", snapshot + "/model.safetensors");
  EXPECT_EQ(cached_snapshot(environment, place), snapshot);
  place.revision = "main";
  EXPECT_EQ(cached_commit(environment, place), kCommit);
  place.revision = "other";
  EXPECT_EQ(cached_commit(environment, place), std::nullopt);
}

}  // namespace
}  // namespace librarian::weightmap::remote
