#include "weightmap/remote/aws_credentials.h"

#include <algorithm>
#include <cctype>
#include <map>

#include "base/text.h"
#include "weightmap/remote/aws_config_file.h"

namespace librarian::weightmap::remote {
namespace {

constexpr const char* kExport =
    "put static ones into the environment (eval \"$(aws configure export-credentials --format "
    "env)\"), or set AWS_NO_SIGN_REQUEST=true for a public bucket";

using Section = std::map<std::string, std::string>;

std::string value_of(const Section& section, const std::string& name) {
  const auto found = section.find(name);
  return found == section.end() ? "" : found->second;
}

bool is_true(const std::string& value) {
  const std::string text = lower_case(value);
  return text == "true" || text == "yes" || text == "on" || text == "1";
}

// What goes into a header must not begin another one.
bool fits_a_header(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](unsigned char c) { return c > 32 && c < 127; });
}

Error unusable(const std::string& what) { return {ErrorCode::bad_input, what}; }

class Reader {
 public:
  Reader(const Environment& environment, FileSystem& files)
      : environment_(environment), files_(files) {}

  Result<AwsSettings> read() {
    LIB_TRY_VOID(read_profile());
    AwsSettings settings;
    settings.region = first_of({variable("AWS_REGION"), variable("AWS_DEFAULT_REGION"),
                                value_of(config_, "region"), value_of(secrets_, "region")});
    settings.endpoint_url = endpoint();
    const std::string style = value_of(config_, "s3.addressing_style");
    settings.addressing = style == "virtual" ? S3Addressing::host
                          : style == "path"  ? S3Addressing::path
                                             : S3Addressing::automatic;
    if (is_true(variable("AWS_NO_SIGN_REQUEST"))) {
      return settings;
    }
    LIB_TRY(settings.credentials, credentials(settings.asker));
    if (settings.credentials &&
        (!fits_a_header(settings.credentials->access_key) ||
         settings.credentials->access_key.find_first_of("/,") != std::string::npos ||
         !fits_a_header(settings.credentials->session_token))) {
      return unusable("the access key or session token of " + settings.asker +
                      " has characters that none has; set it again");
    }
    return settings;
  }

 private:
  // An empty variable is as none, as for the AWS tools.
  std::string variable(const std::string& name) const { return environment_(name).value_or(""); }

  static std::string first_of(std::initializer_list<std::string> values) {
    const auto found = std::find_if(values.begin(), values.end(),
                                    [](const std::string& value) { return !value.empty(); });
    return found == values.end() ? "" : *found;
  }

  Result<AwsConfigFile> read_file(const char* name, const std::string& usual) const {
    const std::string home = variable("HOME");
    std::string path = first_of({variable(name), "~/.aws/" + usual});
    if (path.rfind("~/", 0) == 0) {
      if (home.empty()) {
        return AwsConfigFile();
      }
      path.replace(0, 1, home);
    }
    const auto text = read_small_file(files_, path, kAwsConfigFileBytesMax);
    if (!text) {
      return text.error().code() == ErrorCode::not_found
                 ? Result<AwsConfigFile>(AwsConfigFile())
                 : Result<AwsConfigFile>(text.error().with_code(ErrorCode::bad_input));
    }
    auto file = parse_aws_config_file(*text);
    if (!file) {
      return file.error().with_context(path);
    }
    return file;
  }

  Result<void> read_profile() {
    const std::string asked = variable("AWS_PROFILE");
    if (!std::all_of(asked.begin(), asked.end(),
                     [](unsigned char c) { return c >= 32 && c != 127; })) {
      return unusable("AWS_PROFILE contains a control character");
    }
    profile_ = asked.empty() ? "default" : asked;
    LIB_TRY(const AwsConfigFile secrets, read_file("AWS_SHARED_CREDENTIALS_FILE", "credentials"));
    LIB_TRY(const AwsConfigFile config, read_file("AWS_CONFIG_FILE", "config"));
    auto in_config = config.find("profile " + profile_);
    if (in_config == config.end() && profile_ == "default") {
      in_config = config.find(profile_);
    }
    const auto in_secrets = secrets.find(profile_);
    if (in_config == config.end() && in_secrets == secrets.end() && !asked.empty()) {
      return unusable("AWS_PROFILE is '" + profile_ +
                      "', but neither ~/.aws/credentials nor ~/.aws/config has that profile; "
                      "check its name");
    }
    if (in_config != config.end()) {
      config_ = in_config->second;
      const auto services = config.find("services " + value_of(config_, "services"));
      if (services != config.end()) {
        services_ = services->second;
      }
    }
    if (in_secrets != secrets.end()) {
      secrets_ = in_secrets->second;
    }
    return {};
  }

  std::string endpoint() const {
    if (is_true(first_of({variable("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"),
                          value_of(config_, "ignore_configured_endpoint_urls")}))) {
      return "";
    }
    return first_of({variable("AWS_ENDPOINT_URL_S3"), variable("AWS_ENDPOINT_URL"),
                     value_of(services_, "s3.endpoint_url"), value_of(config_, "endpoint_url")});
  }

  Result<std::optional<AwsCredentials>> credentials(std::string& asker) const {
    AwsCredentials found = {variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"),
                            variable("AWS_SESSION_TOKEN")};
    if (found.access_key.empty() != found.secret_key.empty()) {
      return unusable(std::string("the environment has ") +
                      (found.access_key.empty() ? "AWS_SECRET_ACCESS_KEY without AWS_ACCESS_KEY_ID"
                                                : "AWS_ACCESS_KEY_ID without "
                                                  "AWS_SECRET_ACCESS_KEY") +
                      "; set both or none");
    }
    if (!found.access_key.empty()) {
      asker = "the environment's credentials";
      return std::optional(found);
    }
    asker = "profile '" + profile_ + "'";
    if (const std::string needs = sign_in(); !needs.empty()) {
      return unusable(asker + " has no credentials of its own but " + needs + "; " + kExport);
    }
    for (const Section* section : {&secrets_, &config_}) {
      found = {value_of(*section, "aws_access_key_id"), value_of(*section, "aws_secret_access_key"),
               value_of(*section, "aws_session_token")};
      if (found.access_key.empty() != found.secret_key.empty()) {
        return unusable(asker +
                        " has only one of aws_access_key_id and aws_secret_access_key; "
                        "give both");
      }
      if (!found.access_key.empty()) {
        return std::optional(found);
      }
    }
    if (!value_of(config_, "credential_process").empty() ||
        !value_of(secrets_, "credential_process").empty()) {
      return unusable(asker + " has no credentials of its own but a credential_process; " +
                      kExport);
    }
    for (const char* name : {"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                             "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"}) {
      if (!variable(name).empty()) {
        return unusable(std::string("the environment offers credentials through ") + name +
                        ", which is not supported; " + kExport);
      }
    }
    asker = "nobody";
    return std::optional<AwsCredentials>();
  }

  // What of the profile, if anything, takes precedence over keys that it may hold as well.
  std::string sign_in() const {
    for (const char* name : {"role_arn", "sso_session", "sso_start_url", "login_session"}) {
      if (!value_of(config_, name).empty() || !value_of(secrets_, name).empty()) {
        return std::string("a ") + name;
      }
    }
    return "";
  }

  const Environment& environment_;
  FileSystem& files_;
  std::string profile_;
  Section secrets_;   // The profile in the credentials file,
  Section config_;    // and in the config file,
  Section services_;  // and what its `services` names there.
};

}  // namespace

Result<AwsSettings> read_aws_settings(const Environment& environment, FileSystem& files) {
  return Reader(environment, files).read();
}

}  // namespace librarian::weightmap::remote
