#include "weightmap/remote/aws_credentials.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <span>

#include "tests/support/memory_file_system.h"
#include "weightmap/remote/aws_config_file.h"

namespace librarian::weightmap::remote {
namespace {

using librarian::testing::MemoryFileSystem;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kSecret = "CANARY/canary+CANARY";

class AwsCredentialsTest : public ::testing::Test {
 protected:
  AwsCredentialsTest() {
    EXPECT_TRUE(make_directories(files_, "/home/me/.aws"));
    environment_["HOME"] = "/home/me";
  }

  void write(const std::string& path, const std::string& text) {
    auto file = files_.create(path);
    ASSERT_TRUE(file) << file.error().message();
    ASSERT_TRUE((*file)->append(std::as_bytes(std::span(text))));
  }
  void write_credentials(const std::string& text) { write("/home/me/.aws/credentials", text); }
  void write_config(const std::string& text) { write("/home/me/.aws/config", text); }

  Result<AwsSettings> read() {
    return read_aws_settings(
        [this](const std::string& name) -> std::optional<std::string> {
          const auto found = environment_.find(name);
          return found == environment_.end() ? std::nullopt : std::optional(found->second);
        },
        files_);
  }
  AwsSettings good() {
    auto settings = read();
    EXPECT_TRUE(settings) << settings.error().message();
    return settings ? *settings : AwsSettings();
  }
  std::string refusal() {
    const auto settings = read();
    EXPECT_FALSE(settings);
    if (settings) {
      return "";
    }
    EXPECT_EQ(settings.error().code(), ErrorCode::bad_input);
    EXPECT_THAT(settings.error().message(), Not(HasSubstr("CANARY")));
    return settings.error().message();
  }

  MemoryFileSystem files_;
  std::map<std::string, std::string> environment_;
};

TEST_F(AwsCredentialsTest, NothingSetMeansAnonymous) {
  const AwsSettings settings = good();
  EXPECT_FALSE(settings.credentials);
  EXPECT_EQ(settings.region, "");
  EXPECT_EQ(settings.endpoint_url, "");
  environment_.erase("HOME");
  EXPECT_FALSE(good().credentials);
}

TEST_F(AwsCredentialsTest, TheEnvironmentWinsOverTheFiles) {
  write_credentials("[default]\naws_access_key_id = FILE\naws_secret_access_key = x\n");
  write_config("[default]\nregion = eu-west-1\nendpoint_url = https://file:1\n");
  EXPECT_EQ(good().credentials, (AwsCredentials{"FILE", "x", ""}));
  EXPECT_EQ(good().asker, "profile 'default'");
  EXPECT_EQ(good().region, "eu-west-1");
  EXPECT_EQ(good().endpoint_url, "https://file:1");
  environment_["AWS_ACCESS_KEY_ID"] = "ENV";
  environment_["AWS_SECRET_ACCESS_KEY"] = kSecret;
  environment_["AWS_SESSION_TOKEN"] = "token";
  environment_["AWS_DEFAULT_REGION"] = "us-west-2";
  environment_["AWS_ENDPOINT_URL"] = "https://all:1";
  EXPECT_EQ(good().credentials, (AwsCredentials{"ENV", kSecret, "token"}));
  EXPECT_EQ(good().asker, "the environment's credentials");
  EXPECT_EQ(good().region, "us-west-2");
  EXPECT_EQ(good().endpoint_url, "https://all:1");
  environment_["AWS_REGION"] = "us-west-1";
  environment_["AWS_ENDPOINT_URL_S3"] = "https://s3:1";
  EXPECT_EQ(good().region, "us-west-1");
  EXPECT_EQ(good().endpoint_url, "https://s3:1");
  environment_["AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"] = "true";
  EXPECT_EQ(good().endpoint_url, "");
  environment_["AWS_NO_SIGN_REQUEST"] = "YES";
  EXPECT_FALSE(good().credentials);
}

// Goal: profiles are found under the name that each of the two files gives them.
TEST_F(AwsCredentialsTest, ReadsTheProfileThatIsAskedFor) {
  write_credentials(
      "[default]\naws_access_key_id=D\naws_secret_access_key=d\n"
      "[work]\naws_access_key_id = W\naws_secret_access_key = w\naws_session_token = t\n");
  write_config(
      "[profile work]\nregion = eu-central-1\nservices = near\n"
      "endpoint_url = https://general\ns3 =\n  addressing_style = virtual\n  "
      "endpoint_url = https://not-here\n"
      "[services near]\nsqs =\n  endpoint_url = https://sqs\ns3 =\n  endpoint_url = https://s3\n"
      "[work]\nregion = not-this\n"
      "[profile \"in config\"]\naws_access_key_id=C\naws_secret_access_key=c\n");
  EXPECT_EQ(good().credentials, (AwsCredentials{"D", "d", ""}));
  environment_["AWS_PROFILE"] = "work";
  EXPECT_EQ(good().credentials, (AwsCredentials{"W", "w", "t"}));
  EXPECT_EQ(good().asker, "profile 'work'");
  EXPECT_EQ(good().region, "eu-central-1");
  EXPECT_EQ(good().endpoint_url, "https://s3");
  EXPECT_EQ(good().addressing, S3Addressing::host);
  environment_["AWS_PROFILE"] = "in config";
  EXPECT_EQ(good().credentials, (AwsCredentials{"C", "c", ""}));
  EXPECT_EQ(good().addressing, S3Addressing::automatic);
  environment_["AWS_PROFILE"] = "wrok";
  EXPECT_THAT(refusal(), HasSubstr("'wrok'"));
}

TEST_F(AwsCredentialsTest, FilesMayLieElsewhere) {
  write("/c", "[default]\naws_access_key_id=C\naws_secret_access_key=c\n");
  write("/home/me/f", "[default]\nregion=r\n");
  environment_["AWS_SHARED_CREDENTIALS_FILE"] = "/c";
  environment_["AWS_CONFIG_FILE"] = "~/f";
  EXPECT_EQ(good().credentials, (AwsCredentials{"C", "c", ""}));
  EXPECT_EQ(good().region, "r");
}

// Goal: nothing is asked anonymously, or with half of what was meant, behind the user's back.
TEST_F(AwsCredentialsTest, SaysWhatToDoWhereItCannotSign) {
  const struct {
    const char* credentials;
    const char* config;
    const char* variable;  // Set to kSecret.
    const char* says;
  } rows[] = {
      {"", "[default]\nsso_session = x\n", "", "sso_session"},
      {"", "[default]\nsso_start_url = x\n", "", "export-credentials"},
      {"", "[default]\nrole_arn = x\n", "", "role_arn"},
      {"[default]\naws_access_key_id=A\naws_secret_access_key=CANARY\n",
       "[default]\nrole_arn = x\n", "", "role_arn"},
      {"", "[default]\ncredential_process = /bin/CANARY\n", "", "credential_process"},
      {"[default]\naws_secret_access_key = CANARY\n", "", "", "only one of"},
      {"[default]\naws_access_key_id = CANARY\n", "", "", "only one of"},
      {"", "", "AWS_SECRET_ACCESS_KEY", "without AWS_ACCESS_KEY_ID"},
      {"", "", "AWS_ACCESS_KEY_ID", "without AWS_SECRET_ACCESS_KEY"},
      {"", "", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE"},
      {"", "", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "not supported"},
      {"[default]\naws_access_key_id=CANARY CANARY\naws_secret_access_key=x\n", "", "",
       "characters"},
      {"[default]\naws_access_key_id=CANARY/CANARY\naws_secret_access_key=x\n", "", "",
       "characters"},
      {"[default]\naws_access_key_id=A\naws_secret_access_key=x\naws_session_token=CANARY\x7F\n",
       "", "", "characters"},
      {"[default]\nCANARY\n", "", "", "credentials: line 2"},
      {"", "CANARY = x\n", "", "config: line 1"},
      {"", "[default\nCANARY = x\n", "", "config: line 1"},
  };
  for (const auto& row : rows) {
    ASSERT_TRUE(files_.remove_file("/home/me/.aws/credentials"));
    ASSERT_TRUE(files_.remove_file("/home/me/.aws/config"));
    write_credentials(row.credentials);
    write_config(row.config);
    if (*row.variable != '\0') {
      environment_[row.variable] = kSecret;
    }
    EXPECT_THAT(refusal(), HasSubstr(row.says)) << row.credentials << row.config;
    environment_.erase(row.variable);
  }
  environment_["AWS_PROFILE"] = "a\nb";
  EXPECT_THAT(refusal(), HasSubstr("AWS_PROFILE"));
}

TEST_F(AwsCredentialsTest, KeysOfTheirOwnWinOverAProgram) {
  write_credentials("[default]\naws_access_key_id=A\naws_secret_access_key=a\n");
  write_config("[default]\ncredential_process = x\n");
  EXPECT_EQ(good().credentials, (AwsCredentials{"A", "a", ""}));
}

TEST(AwsConfigFile, ReadsTheFormsThatPeopleWrite) {
  const auto file = parse_aws_config_file(
      "\xEF\xBB\xBF# comment\r\n; comment\r\n\r\n[ profile   x ] # comment\r\n"
      "Region=eu-west-1 ; comment\r\nkey = a#b;c=d\r\n"
      "long = 1\n  2\n  3\n"
      "s3 =\n\tmax_queue_size = 1\n\tendpoint_url = u\nafter = x\n"
      "[profile x]\nregion = later\n[empty]");
  ASSERT_TRUE(file) << file.error().message();
  const AwsConfigFile expected = {{"profile x",
                                   {{"region", "later"},
                                    {"key", "a#b;c=d"},
                                    {"long", "1"},
                                    {"s3", ""},
                                    {"s3.max_queue_size", "1"},
                                    {"s3.endpoint_url", "u"},
                                    {"after", "x"}}},
                                  {"empty", {}}};
  EXPECT_EQ(*file, expected);
}

TEST(AwsConfigFile, RefusesWhatIsNone) {
  for (const std::string& text :
       {std::string("x = 1\n"), std::string("[a]\nCANARY\n"), std::string("[a]\n= CANARY\n"),
        std::string("[]\n"), std::string("[a\n"), std::string("[a]\n  CANARY\n"),
        "[a]\nb = " + std::string(kAwsConfigFileBytesMax, 'x')}) {
    const auto file = parse_aws_config_file(text);
    ASSERT_FALSE(file) << text.substr(0, 20);
    EXPECT_EQ(file.error().code(), ErrorCode::bad_input);
    EXPECT_THAT(file.error().message(), Not(HasSubstr("CANARY")));
  }
}

}  // namespace
}  // namespace librarian::weightmap::remote
